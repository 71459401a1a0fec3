//! What is installed on the host of a peer, beside what the donor's databases need: libraries, extensions,
//! locales, and the program that looks for damage.

use super::{
    Doubt, collation,
    needs::{Needs, names},
};
use crate::{RecipientPeer, recipient::PeerFacts};
use anyhow::Result;
use cluster::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// How long a host may take to answer.
const LIMIT: Millis = Millis(120_000);

/// Reads what is needed, a kind and a name a line, and says of each what is not there. `$1` is where the
/// server programs are, `$2` the server's path for libraries.
///
/// Whether a locale can be used is asked of `initdb`, which looks at that before it finds that there is
/// something in the directory that it is given, where it changes nothing.
const LACKS: &str = r#"
bin=$1 path=$2
lib=$("$bin/pg_config" --pkglibdir 2>/dev/null) || lib=
for place in "$bin/../lib" "$bin/../lib/postgresql" "$bin/../lib64" "$bin/../lib64/pgsql"; do
    [ -n "$lib" ] || [ ! -e "$place/plpgsql.so" ] || lib=$place
done
share=$("$bin/initdb" --show -D "$bin" 2>&1 | sed -n 's/^share_path=//p')
[ -n "$lib" ] || echo "place its libraries"
[ -n "$share" ] || echo "place its extensions"
while read -r kind name version; do
    case $kind in
    lib)
        name=$name${version:+ $version} found=
        case $name in
        '$libdir/'*) places=$lib name_in=${name#'$libdir/'} ;;
        /*) places=/ name_in=${name#/} ;;
        *) places=$path name_in=$name ;;
        esac
        IFS_before=$IFS IFS=:
        for place in $places; do
            case $place in '$libdir'*) place=$lib${place#'$libdir'} ;; esac
            for file in "$place/$name_in" "$place/$name_in.so"; do
                [ -n "$found" ] || [ ! -f "$file" ] || [ ! -r "$file" ] || found=$file
            done
        done
        IFS=$IFS_before
        if [ -z "$found" ]; then
            echo "lib $name"
        else
            ldd "$found" 2>/dev/null | sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p' | while read -r other; do
                echo "linked $name $other"
            done
        fi
        ;;
    ext)
        at=$share/extension
        if [ ! -r "$at/$name.control" ]; then
            echo "ext $name"
        elif [ -n "$version" ]; then
            elsewhere=$(sed -n "s/^directory *= *'\(.*\)'.*/\1/p" "$at/$name.control")
            case $elsewhere in '') ;; /*) at=$elsewhere ;; *) at=$share/$elsewhere ;; esac
            set -- "$at/$name--$version.sql" "$at/$name--"*"--$version.sql"
            [ -e "$1" ] || [ -e "$2" ] || echo "version $name $version"
        fi
        ;;
    locale)
        name=$name${version:+ $version}
        said=$("$bin/initdb" -D "$bin" --encoding=SQL_ASCII --lc-collate="$name" --lc-ctype="$name" 2>&1 </dev/null)
        case $said in
        *"not empty"*) ;;
        *) echo "locale $name" ;;
        esac
        ;;
    program)
        [ -x "$bin/$name" ] || echo "program $name"
        ;;
    esac
done
"#;

/// What looks for damage.
const AMCHECK: &str = "pg_amcheck";

/// What a host lacks: of which kind, its name, and what else is to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    kind: String,
    name: String,
    more: String,
}

/// What a setting will be in the server of a peer, where it is set: what comes along from the donor counts
/// more than what its sitter's file says.
fn setting<'a>(needs: &'a Needs, peer: &'a PeerFacts, name: &str) -> Option<&'a str> {
    let donors = needs.settings.get(name).filter(|setting| setting.comes_along());
    let own = peer.library_settings.get(name).map(String::as_str);
    donors.map(|setting| setting.value.as_str()).or(own)
}

/// The libraries that it loads by a setting.
fn loaded<'a>(needs: &'a Needs, peer: &'a PeerFacts, name: &str) -> Vec<&'a str> {
    names(setting(needs, peer, name).unwrap_or_default()).collect()
}

/// The settings that name libraries to be loaded.
const LOADING: [&str; 2] = ["shared_preload_libraries", "session_preload_libraries"];

/// The libraries that are needed there, and what for.
fn libraries(needs: &Needs, peer: &PeerFacts) -> BTreeMap<String, String> {
    let mut libraries = BTreeMap::new();
    for database in &needs.databases {
        for (library, function) in &database.libraries {
            let why = format!("for function {function} of database {}", database.name);
            libraries.entry(library.clone()).or_insert(why);
        }
    }
    for setting in LOADING {
        for library in loaded(needs, peer, setting) {
            libraries.entry(library.to_owned()).or_insert(format!("by {setting}"));
        }
    }
    for setting in &needs.of_roles {
        for library in names(setting) {
            let why = "by a setting of a role or a database".to_owned();
            libraries.entry(library.to_owned()).or_insert(why);
        }
    }
    libraries
}

/// Looks at what is installed on the host of a peer.
pub(super) async fn look(
    peer: &RecipientPeer,
    facts: &PeerFacts,
    needs: &Needs,
    amcheck: bool,
) -> Result<Vec<Lack>> {
    let mut lines = String::new();
    for library in libraries(needs, facts).keys() {
        lines += &format!("lib {library}\n");
    }
    let extensions = needs.databases.iter().flat_map(|database| &database.extensions);
    for (name, version) in extensions.collect::<BTreeSet<_>>() {
        lines += &format!("ext {name} {version}\n");
    }
    for (locale, _) in collation::locales(needs) {
        lines += &format!("locale {locale}\n");
    }
    if amcheck {
        lines += &format!("program {AMCHECK}\n");
    }
    let path = setting(needs, facts, "dynamic_library_path").unwrap_or("$libdir");
    let exec = peer.host.shell(facts.os_user.as_deref(), LACKS, &[&facts.bin_dir, path])?;
    let output = exec.stdin(lines).limit(LIMIT).run().await?.stdout;
    Ok(String::from_utf8_lossy(&output).lines().map(parse).collect())
}

fn parse(line: &str) -> Lack {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (name, more) = match kind {
        // Names of files may have spaces.
        "linked" => rest.rsplit_once(' ').unwrap_or((rest, "")),
        "version" => rest.split_once(' ').unwrap_or((rest, "")),
        _ => (rest, ""),
    };
    Lack { kind: kind.to_owned(), name: name.to_owned(), more: more.to_owned() }
}

/// What its host lacks.
pub(super) fn doubts(needs: &Needs, peer: &PeerFacts, lacks: &[Lack]) -> Vec<Doubt> {
    let libraries = libraries(needs, peer);
    let why = |library: &str| libraries.get(library).map_or("", String::as_str);
    let with = |extension: &str| {
        let mut all = needs.databases.iter();
        let found = all.find(|database| database.extensions.contains_key(extension));
        found.map_or("", |database| database.name.as_str())
    };
    let locales = collation::locales(needs);
    let of = |locale: &str| {
        let found = locales.iter().find(|(name, _)| name == locale);
        found.map_or("", |(_, database)| database.as_str())
    };
    let one = |lack: &Lack| {
        let Lack { kind, name, more } = lack;
        let (problem, remedy) = match kind.as_str() {
            "lib" => (
                format!("it lacks the library {name}, which is loaded {}", why(name)),
                "install there what it belongs to, of the version that the donor has",
            ),
            "linked" => (
                format!("its library {name}, which is loaded {}, lacks {more}", why(name)),
                "install what that library is linked with",
            ),
            "ext" => (
                format!("it lacks the extension {name}, which database {} has", with(name)),
                "install the extension there, of the version that the donor has",
            ),
            "version" => (
                format!(
                    "its extension {name} has no version {more}, which database {} has",
                    with(name)
                ),
                "install the donor's version there, or update the extension in the donor first",
            ),
            "locale" => (
                format!("its PostgreSQL cannot use the locale {name:?} of database {}", of(name)),
                "make the locale there (locale-gen, or localedef), under that name",
            ),
            "program" => (
                format!("it has no {name}, which verify.amcheck needs"),
                "install it there (it is among PostgreSQL's client programs, or in its contrib package), or leave \
                 verify.amcheck out",
            ),
            _ => (
                format!("it cannot be seen where {name} are"),
                "install pg_config of that PostgreSQL there, and all of its server's programs",
            ),
        };
        (true, problem, remedy)
    };
    let mut doubts: Vec<Doubt> = lacks.iter().map(one).collect();
    for library in unloaded(needs, peer, LOADING[0]).filter(|library| needs.requires(library)) {
        doubts.push((
            true,
            format!(
                "it does not load {library} at its start (shared_preload_libraries), as the donor does: \
                 what is in the database needs that"
            ),
            "set shared_preload_libraries in [postgres.settings] of its sitter's file as it is at the donor",
        ));
    }
    doubts
}

/// What the donor loads and the peer does not.
fn unloaded<'a>(
    needs: &'a Needs,
    peer: &PeerFacts,
    setting: &str,
) -> impl Iterator<Item = &'a str> {
    let own: BTreeSet<String> =
        loaded(needs, peer, setting).into_iter().map(str::to_owned).collect();
    let donors = needs.settings.get(setting).map_or("", |setting| setting.value.as_str());
    names(donors).filter(move |library| !own.contains(*library))
}

impl Needs {
    /// Whether something in the databases needs this library to be loaded from the start: an extension of
    /// that name, a function in it or in one whose name begins so, as of a loader; or what cannot be told from the
    /// rest, because WAL has records that only some library can replay.
    fn requires(&self, library: &str) -> bool {
        let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let library = base(library);
        self.managers
            || self.databases.iter().any(|database| {
                database.extensions.contains_key(&library)
                    || database.libraries.keys().any(|used| {
                        let used = base(used);
                        let rest = used.strip_prefix(&library);
                        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
                    })
            })
    }
}

/// What the peer will not load, and nothing needs.
pub(super) fn notes(needs: &Needs, peer: &PeerFacts) -> Vec<String> {
    let mut notes = Vec::new();
    for setting in LOADING {
        for library in unloaded(needs, peer, setting) {
            if setting != LOADING[0] || !needs.requires(library) {
                notes.push(format!(
                    "{} does not load {library} ({setting}), as the donor does: set it in [postgres.settings] of its \
                     sitter's file if it is wanted",
                    peer.peer.zone_id
                ));
            }
        }
    }
    notes
}

#[cfg(test)]
#[path = "libraries_tests.rs"]
mod tests;
