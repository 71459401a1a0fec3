//! Streams that end too early.

use super::{Bench, Told, at, name, names, names_if_any, noise, read, told, write};
use adapters::storage::{ResumeToken, SendFrom, StorageCause};
use std::{collections::BTreeSet, fs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A stream that ends too early, anywhere, gives no snapshot and no dataset that could be used.
pub async fn what_is_cut_off_never_counts(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("cut").await;
    let b = name("cut");
    for number in 0..20 {
        fs::write(on.join(number.to_string()), noise(20_000)).expect("a file");
    }
    here.snapshot(&a, &at(1)).await.good("snapshot");
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    let lengths = [0, 1, 100, all.len() / 2, all.len() - 400, all.len() - 10, all.len() - 1];
    let ends = lengths.into_iter().chain(command_ends(&all));
    for length in ends {
        let result = write(&**there, &b, &all[..length]).await;
        assert!(result.is_err(), "{length} of {} bytes were taken for all", all.len());
        let usable = names_if_any(&**there, &b).await;
        assert_eq!(usable, Vec::<String>::new(), "after {length} bytes");
        there.abandon(&b).await.good("abandon");
    }
    // Dropped in the middle, and told to stop in the middle.
    for told_to in [true, false] {
        let mut stream = there.receive(&b).await.good("receive");
        stream.write_all(&all[..all.len() / 2]).await.expect("written");
        // Ending it by habit does not end it.
        stream.shutdown().await.expect("nothing");
        if told_to {
            stream.abort().await
        } else {
            drop(stream)
        }
        there.abandon(&b).await.good("abandon");
        assert_eq!(names_if_any(&**there, &b).await, Vec::<String>::new());
    }
    // And a reader that stops early stops the sender.
    let mut stream = here.send(&a, &at(1), &SendFrom::Nothing, &BTreeSet::new()).await.good("send");
    stream.read_exact(&mut [0; 10]).await.expect("its beginning");
    drop(stream);
    write(&**there, &b, &all).await.good("all of it, afterwards");
    there.destroy(&b).await.good("destroy");
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}

/// Where the commands of a btrfs stream end: cut off there, only its last command is missing to make it
/// whole.
fn command_ends(stream: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    if !stream.starts_with(b"btrfs-stream\0") {
        return ends;
    }
    let mut offset = 17;
    while offset + 10 < stream.len() {
        let length = u32::from_le_bytes(stream[offset..offset + 4].try_into().expect("four bytes"));
        offset += 10 + length as usize;
        ends.push(offset);
    }
    assert_eq!(ends.last(), Some(&(stream.len() - 10)), "where the last one begins");
    // A few of them, the last ones all.
    let few = ends.len().saturating_sub(4);
    ends.into_iter()
        .enumerate()
        .filter(|(at, _)| at % 40 == 0 || *at >= few)
        .map(|(_, end)| end)
        .collect()
}

pub async fn a_receive_that_broke_off_goes_on_where_it_can(bench: &Bench) {
    let (here, there) = (&bench.here, &bench.there);
    let (a, on) = bench.dataset("resumed").await;
    let b = name("resumed");
    fs::write(on.join("file"), noise(8 << 20)).expect("a file");
    let sent = here.snapshot(&a, &at(1)).await.good("snapshot");
    let all = read(&**here, &a, 1, &SendFrom::Nothing).await;
    assert_eq!(there.unfinished(&b).await.good("unfinished"), None);
    write(&**there, &b, &all[..all.len() / 2]).await.expect_err("half of it");
    let unfinished = there.unfinished(&b).await.good("unfinished");
    if there.capabilities().resume {
        let unfinished = unfinished.expect("it can go on");
        assert_eq!(unfinished.to, sent.guid);
        let mut rest = Vec::new();
        let mut stream = here.send_rest(&unfinished.token).await.good("the rest");
        stream.read_to_end(&mut rest).await.expect("all of it");
        assert!(rest.len() < all.len(), "{} of {} bytes", rest.len(), all.len());
        write(&**there, &b, &rest).await.good("receive");
        here.send_rest(&ResumeToken::new("-x")).await.expect_err("no token");
        // And one that is given up leaves nothing.
        let c = name("given-up");
        write(&**there, &c, &all[..all.len() / 2]).await.expect_err("half of it");
        there.abandon(&c).await.good("abandon");
        assert_eq!(there.unfinished(&c).await.good("unfinished"), None);
        write(&**there, &c, &all).await.good("from the start");
        there.destroy(&c).await.good("destroy");
    } else {
        assert_eq!(unfinished, None);
        let error = here.send_rest(&ResumeToken::new("x")).await.expect_err("it cannot");
        assert!(matches!(error, StorageCause::Unsupported { .. }), "{}", told(&error));
        there.abandon(&b).await.good("abandon");
        write(&**there, &b, &all).await.good("from the start");
    }
    assert_eq!(names(&**there, &b).await, ["0000000000001"]);
    there.destroy(&b).await.good("destroy");
    here.unmount(&a).await.good("unmount");
    here.destroy(&a).await.good("destroy");
}
