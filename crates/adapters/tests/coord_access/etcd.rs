//! Who may do what in an etcd, who may come in, and that whoever may stays in when its token ends.

use super::certificates::Certificates;
use super::common::etcd::{CALL, open_etcd};
use super::common::{LONG, Stream, join, peer, put, sequences, state, stored, timed, watch};
use super::guarded::{Guarded, ROOT};
use super::{as_user, check, over_tls};
use adapters::clock;
use adapters::coord::{Access, CoordEvent, Coordination, PutOutcome};
use cluster::{Millis, Monotonic};
use etcd_client::ConnectOptions;
use std::sync::Arc;

impl Guarded {
    fn access(&self, user: &str, password: &str) -> Access {
        let tls = self.secure.then(|| over_tls(&self.certificates, Some(&self.certificates)));
        Access { tls: tls.and_then(|access| access.tls), ..as_user(user, password) }
    }

    fn open(&self, access: &Access) -> Arc<dyn Coordination> {
        Arc::new(open_etcd(&[self.etcd.address(0).to_string()], ROOT, access))
    }

    fn ours(&self) -> Arc<dyn Coordination> {
        self.open(&self.access("manatee", "manatee secret"))
    }
}

/// All that a sitter and an operator do, over TLS and as a user; and each of those who lack something is
/// told what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_both_ways_and_a_user() {
    let guarded = Guarded::closed(true, &[]).await;
    let coord = guarded.ours();
    let (mut member, sequence) = join(&coord, 1, LONG).await;
    member.until_confirmed().await;
    let mut watcher = watch(&coord).await;
    let version = put(&coord, None, 1).await;
    watcher.until_version(version).await;
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [sequence]);
    assert_eq!(coord.history().await.expect("to read").len(), 1);

    let (own, stranger) = (&guarded.certificates, Certificates::make());
    let user = as_user("manatee", "manatee secret").credentials;
    let with_user = |access: Access| Access { credentials: user.clone(), ..access };
    let server = guarded.etcd.address(0).to_string();
    let refused: [(Access, &[&str]); 6] = [
        (
            with_user(over_tls(&stranger, Some(own))),
            &[&server, "invalid peer certificate", "ca_file"],
        ),
        (with_user(over_tls(own, None)), &[&server, "certificate_file"]),
        (with_user(over_tls(own, Some(&stranger))), &[&server, "certificate_file"]),
        (with_user(Access::default()), &[&server, "if it talks TLS: give ca_file"]),
        // The name in the certificate is a user, too, which may nothing here.
        (over_tls(own, Some(own)), &["may not be read", "name in our certificate"]),
        (guarded.access("manatee", "other"), &["\"manatee\"", "password_file", "[etcd]"]),
    ];
    for (access, parts) in refused {
        let (read, time) = timed(guarded.open(&access).read()).await;
        check(&read.expect_err("refused").cause.to_string(), parts);
        assert!(time < CALL, "{time:?}");
    }

    let Stream::Member(member) = member else { unreachable!("join gives a member") };
    member.leave().await.expect("to leave");
    watcher.until_active(&[]).await;
}

/// What a role does not allow is told with the keys, and with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_does_not_allow() {
    let guarded = Guarded::closed(false, &[]).await;
    let ours = guarded.ours();
    let (_member, sequence) = join(&ours, 1, LONG).await;
    let version = put(&ours, None, 1).await;
    let grant = format!("grant-permission ROLE readwrite --prefix=true {ROOT}/1.example/");

    let reader = guarded.open(&guarded.access("reader", "reader secret"));
    let view = reader.read().await.expect("to read");
    assert_eq!(sequences(&view.active), [sequence]);
    assert_eq!(reader.history().await.expect("to read").len(), 1);
    let mut watcher = watch(&reader).await;
    watcher.until_version(version).await;
    let refused = reader.put(Some(version), &state(2)).await;
    let PutOutcome::Refused(error) = refused else { panic!("{refused:?}") };
    check(&error.cause.to_string(), &["/guarded/1.example/state may not be written", &grant]);
    let error = reader.join(&peer(2), LONG).await.map(drop).expect_err("refused");
    check(&error.cause.to_string(), &["/guarded/1.example/election/", "be written", &grant]);

    let nobody = guarded.open(&guarded.access("nobody", "nobody secret"));
    let read = nobody.read().await.expect_err("refused");
    check(&read.cause.to_string(), &["/guarded/1.example/ may not be read", &grant]);
    let watching = nobody.watch().await.map(drop).expect_err("refused");
    check(&watching.cause.to_string(), &["/guarded/1.example/ may not be", &grant]);
    let history = nobody.history().await.expect_err("refused");
    check(&history.cause.to_string(), &["/guarded/1.example/history/ may not be read", &grant]);
    assert_eq!(stored(&ours).await.expect("a state").version, version);
}

/// Tokens that end when nobody has shown them for a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_tokens_end() {
    let guarded = Guarded::closed(false, &["--auth-token-ttl", "1"]).await;
    outlives_tokens(&guarded).await;
}

/// Tokens that end after two seconds, shown or not, and when any user is changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end_at_their_time() {
    let token = "jwt,pub-key={}server.public,priv-key={}server.key,sign-method=RS256,ttl=2s";
    let guarded = Guarded::closed(false, &["--auth-token", token]).await;
    outlives_tokens(&guarded).await;
    let coord = guarded.ours();
    let (mut member, _) = join(&coord, 2, LONG).await;
    member.until_confirmed().await;
    let mut version = stored(&coord).await.expect("a state").version;
    let mut root = guarded.root().await;
    for number in 0..3 {
        root.user_add(format!("other {number}"), "secret", None).await.expect("a user");
        version = put(&coord, Some(version), 3).await;
        member.until_version(version).await;
    }
    member.until_confirmed_after(clock::now()).await;
}

/// Through four lives of a token: the session stays, proofs come as often as ever, changes are told, puts
/// are answered; and no more is asked for than a token at a time.
async fn outlives_tokens(guarded: &Guarded) {
    let coord = guarded.ours();
    // Beats every three seconds, when its token has ended.
    let (mut member, own) = join(&coord, 1, Millis(9000)).await;
    let mut watcher = watch(&coord).await;
    let idle = guarded.ours();
    idle.read().await.expect("to read");
    member.until_confirmed().await;
    let (logins, begun) = (guarded.etcd.answered(0, "Authenticate"), clock::now());
    let (mut version, mut proofs) = (None, Vec::<Monotonic>::new());
    for generation in 1..=4 {
        let next = |event: &CoordEvent| match event {
            CoordEvent::Confirmed { sent } => Some(*sent),
            CoordEvent::State(_) => None,
            other => panic!("{other:?}"),
        };
        proofs.push(member.until("a proof", next).await);
        version = Some(put(&coord, version, generation).await);
        watcher.until_version(version.expect("stored")).await;
    }
    // What is begun with a token that has ended long ago.
    watch(&idle).await.until_version(version.expect("stored")).await;
    let gaps: Vec<_> = proofs.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("proofs {gaps:?} apart");
    assert!(gaps.iter().all(|gap| *gap < Millis(6000)), "{gaps:?}");
    let logins = guarded.etcd.answered(0, "Authenticate") - logins;
    let seconds = (clock::now() - begun).0 / 1000;
    println!("{logins} logins in {seconds} s");
    assert!((3..=2 * seconds).contains(&logins), "{logins} logins in {seconds} s");
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [own]);
}

/// A server forgets all tokens when it is started anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end_with_their_server() {
    let guarded = Guarded::closed(true, &[]).await;
    let coord = guarded.ours();
    let (mut member, own) = join(&coord, 1, LONG).await;
    let mut watcher = watch(&coord).await;
    let version = put(&coord, None, 1).await;
    member.until_confirmed().await;
    guarded.etcd.kill(0);
    guarded.etcd.launch(0).expect("started");
    guarded.etcd.wait_serving(0).expect("serving");
    member.until_confirmed_after(clock::now()).await;
    let version = put(&coord, Some(version), 2).await;
    watcher.until_version(version).await;
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [own]);
}

/// Users are asked for, and no more, and asked for again, while a sitter that has always known its
/// password is at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentication_is_switched_while_a_member_lives() {
    let guarded = Guarded::start(false, &[]);
    let coord = guarded.ours();
    let (mut member, own) = join(&coord, 1, LONG).await;
    let mut watcher = watch(&coord).await;
    let mut version = put(&coord, None, 1).await;
    for step in 0..3 {
        match step {
            0 => guarded.enable().await,
            1 => drop(guarded.root().await.auth_disable().await.expect("disabled")),
            _ => {
                let mut anybody = guarded.raw(ConnectOptions::new()).await;
                anybody.auth_enable().await.expect("enabled");
            }
        }
        version = put(&coord, Some(version), 2).await;
        watcher.until_version(version).await;
        member.until_confirmed_after(clock::now()).await;
    }
    assert_eq!(sequences(&coord.read().await.expect("to read").active), [own]);
    let stranger = guarded.open(&Access::default()).read().await.expect_err("nobody");
    check(&stranger.cause.to_string(), &["who we are", "user and password_file", "[etcd]"]);
    let tls = guarded.open(&over_tls(&guarded.certificates, None)).read().await;
    check(&tls.expect_err("plain text").cause.to_string(), &["does not talk TLS", "ca_file"]);
}

/// A member whose password does not hold any more says so, asks seldom, and ends by its own clock; with the
/// old password it comes in again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_changed() {
    let guarded = Guarded::closed(false, &[]).await;
    let coord = guarded.ours();
    let (mut member, _) = join(&coord, 1, Millis(6000)).await;
    member.until_confirmed().await;
    let logins = guarded.etcd.answered(0, "Authenticate");
    let changed = clock::now();
    guarded.change_password("another").await;
    let why = member
        .until("a reason", |event| match event {
            CoordEvent::Unreachable(why) => Some(why.clone()),
            _ => None,
        })
        .await;
    check(&why, &["\"manatee\"", "password_file"]);
    member.until("its end", |event| matches!(event, CoordEvent::Expired).then_some(())).await;
    let seconds = (clock::now() - changed).0 / 1000;
    let logins = guarded.etcd.answered(0, "Authenticate") - logins;
    println!("{logins} logins in {seconds} s");
    // One of them is root's.
    assert!(logins <= seconds + 3, "{logins} logins in {seconds} s");
    guarded.change_password("manatee secret").await;
    let (mut member, _) = join(&guarded.ours(), 1, LONG).await;
    member.until_confirmed().await;
}
