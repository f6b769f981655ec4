//! An origin that is killed after the switch, with a witness that has what had not arrived.

use super::Application;
use super::application::NAME;
use super::gate::Gate;
use super::side::{Side, status};
use crate::driving::{run, stdout, wait_for};

/// A third host, with a store that has something else in it.
fn third(application: &Application) -> (Side, String) {
    let path = application.path("third");
    std::fs::write(&path, vec![0xee; 200_000]).unwrap();
    let offer = format!("w=file:{}?capacity=64MiB", path.display());
    let mut third = Side::start(application.folder(), &["serve", &offer, "--listen", "pw://127.0.0.1:0"]);
    third.line("listening ");
    let address = third.region("w");
    (third, address)
}

#[test]
fn what_a_killed_origin_had_comes_from_its_witness() {
    let application = Application::new();
    let (mut third, witness) = third(&application);
    let mut out = application.out(&["--witness", &witness]);
    application.go_on(&application.path("a"));
    application.wait_for_commits(3);
    let (region, path) = (out.region(NAME), application.path("b"));
    let gate = Gate::new(&application, "resume");
    let resume = gate.before(&application.script("start"));
    let record = application.record("b.region.arrival");
    let extra = ["--mode", "post-copy", "--witness", &witness, "--on-resume", &resume];
    let mut there = application.arrive(&region, &path, &extra);
    gate.wait();
    let found = status(&record);
    assert_eq!(found["witnesses"].as_array().map(Vec::len), Some(1), "{found}");
    out.kill();
    gate.open();
    assert!(there.line("arrived ").contains("a witness has everything"));
    let complete = there.line("complete: ");
    assert!(complete.contains("the origin is gone"), "{complete}");
    application.wait_for_commits(3);
    let found = stdout(&["migrate", "status", &record]);
    // The origin may have heard of its beginning, but not of its end.
    assert!(found.starts_with("completing: ") || found.starts_with("completed: "), "{found}");
    // It comes back, does not run anything, and hears that it is over.
    let address = region.strip_suffix(&format!("/{NAME}")).unwrap();
    let mut again = application.out(&["--listen", address]);
    assert!(again.errors().contains("must not run here"), "{}", again.errors());
    assert_eq!(again.end().code(), Some(0), "{}", again.errors());
    wait_for("it is known", || stdout(&["migrate", "status", &record]).starts_with("completed: "));
    application.wait_for_commits(2);
    application.stop();
    application.check(&path);
    there.signal("-TERM");
    assert_eq!(there.end().code(), Some(0), "{}", there.errors());
    third.signal("-TERM");
    assert_eq!(third.end().code(), Some(0), "{}", third.errors());
    application.leaves_nothing();
}

/// Both are gone at once, the origin for ever.
#[test]
fn a_destination_that_is_killed_too_goes_on_with_the_witness_alone() {
    let application = Application::new();
    let (_third, witness) = third(&application);
    let mut out = application.out(&["--witness", &witness]);
    application.go_on(&application.path("a"));
    application.wait_for_commits(3);
    let (region, path) = (out.region(NAME), application.path("b"));
    let gate = Gate::new(&application, "resume");
    let resume = gate.before(&application.script("start"));
    let named = format!("{NAME}={witness}");
    let extra = ["--mode", "hybrid", "--witness", &named, "--on-resume", &resume];
    let mut there = application.arrive(&region, &path, &extra);
    gate.wait();
    out.kill();
    there.kill();
    gate.open();
    let record = application.record("b.region.arrival");
    // The second time everything is here, and nobody else is needed.
    for round in 0..2 {
        let mut there = Side::start(application.folder(), &["migrate", "resume", &record]);
        there.line("arrived ");
        assert!(there.line("complete: ").contains("the origin is gone"));
        application.wait_for_commits(2);
        application.stop();
        application.check(&path);
        there.signal("-TERM");
        assert_eq!(there.end().code(), Some(0), "round {round}: {}", there.errors());
    }
}

#[test]
fn a_witness_that_cannot_be_used_is_told_at_once() {
    let application = Application::new();
    let path = application.path("a");
    let offer = format!("{NAME}={}", application.store_of("a"));
    let mount = path.to_str().unwrap();
    let out = |witness: &str| {
        let suspend = ["--on-suspend", "true", "--listen", "pw://127.0.0.1:0"];
        run(&[&["migrate", "out", &offer, "--mount", mount, "--witness", witness][..], &suspend].concat())
    };
    for (witness, code, expected) in [
        ("mem:64MiB", 2, "lost with it"),
        ("ftp://x", 2, "no kind of store"),
        (&format!("file:{}", application.path("none").display()), 1, "the witness"),
    ] {
        let refused = out(witness);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(code) && text.contains(expected), "{refused:?}");
    }
    assert!(!path.exists());
}
