//! Plain tables: upper-case headers, columns aligned by blanks, nothing around them.

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// What stands above it.
    pub header: &'static str,
    /// How wide it is at least, so that tables printed one after another line up.
    pub width: usize,
    /// Numbers stand to the right.
    pub right: bool,
}

impl Column {
    /// A column of text.
    pub const fn left(header: &'static str, width: usize) -> Self {
        Column { header, width, right: false }
    }

    /// A column of numbers.
    pub const fn right(header: &'static str, width: usize) -> Self {
        Column { header, width, right: true }
    }
}

/// The table as text, each line ended; wider columns than asked for where a cell needs it, and no
/// blanks at the ends of lines. A row that is not as long as `columns` is a bug of the caller.
pub fn render(columns: &[Column], rows: &[Vec<String>], header: bool) -> String {
    let length = |text: &str| text.chars().count();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells = rows.iter().map(|row| length(&row[index])).max().unwrap_or(0);
            let title = if header { length(column.header) } else { 0 };
            cells.max(title).max(column.width)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        assert_eq!(cells.len(), columns.len(), "a row has a cell for each column");
        let padded = cells.iter().zip(columns).zip(&widths).map(|((cell, column), width)| {
            let blanks = " ".repeat(width - length(cell));
            if column.right { blanks + cell } else { (*cell).to_owned() + &blanks }
        });
        let text = padded.collect::<Vec<_>>().join(" ");
        text.trim_end().to_owned() + "\n"
    };
    let title = header.then(|| line(columns.iter().map(|column| column.header).collect()));
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    title.into_iter().chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] =
        [Column::left("ROLE", 8), Column::right("G#", 2), Column::left("IP", 1)];

    fn row(cells: [&str; 3]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn columns_line_up_and_grow() {
        let rows = [row(["primary", "7", "10.0.0.1"]), row(["unassigned", "123", "ä"])];
        let expected = "\
ROLE        G# IP
primary      7 10.0.0.1
unassigned 123 ä
";
        assert_eq!(render(&COLUMNS, &rows, true), expected);
    }

    #[test]
    fn without_header_and_without_rows() {
        assert_eq!(render(&COLUMNS, &[row(["sync", "1", "-"])], false), "sync      1 -\n");
        assert_eq!(render(&COLUMNS, &[], true), "ROLE     G# IP\n");
        assert_eq!(render(&COLUMNS, &[], false), "");
    }
}
