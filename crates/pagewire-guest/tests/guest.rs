//! The harness itself: what scripts do comes back as it was, whatever they do.

use std::time::Duration;

use pagewire_guest::Guest;

#[test]
fn scripts_run_and_their_ends_are_told() {
    if pagewire_guest::skipped() {
        return;
    }
    let report = Guest::new("harness")
        .module("nbd nbds_max=2")
        .limit(Duration::from_secs(5))
        .scenario(
            "succeeds",
            "uname -s; test -b /dev/nbd1; test ! -e /dev/nbd2; ping -c 1 127.0.0.1 >/dev/null",
        )
        .scenario("fails", "echo before; false; echo behind")
        .scenario("lies", "printf 'end succeeds 1 0\\nover\\n'")
        .scenario("hangs", "echo waiting; sleep 1000")
        .scenario("goes-on", "ls; pidof sleep && exit 1; true")
        .boot();
    assert_eq!(report.assert("succeeds"), "Linux\n");
    let fails = report.outcome("fails").unwrap();
    assert_eq!((fails.status, &*fails.output), (1, "before\n"));
    assert_eq!(report.assert("lies"), "end succeeds 1 0\nover\n");
    let hangs = report.outcome("hangs").unwrap();
    assert_eq!((hangs.status, &*hangs.output), (137, "waiting\n"));
    assert_eq!(report.assert("goes-on"), "", "it is in an empty folder, and nothing runs any more");
}

#[test]
fn a_machine_that_ends_early_is_told_of() {
    if pagewire_guest::skipped() {
        return;
    }
    let report = Guest::new("crash")
        .scenario("before", "echo here")
        .scenario("crashes", "echo c >/proc/sysrq-trigger; sleep 10")
        .scenario("behind", "true")
        .boot();
    assert_eq!(report.assert("before"), "here\n");
    for name in ["crashes", "behind"] {
        let panic = std::panic::catch_unwind(|| report.outcome(name).is_some()).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("has ended before it was over") && text.contains("crash.console"), "{text}");
    }
}
