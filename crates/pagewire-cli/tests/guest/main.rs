//! Block devices as a user meets them, under a guest kernel: this program boots it once, and each test here is what
//! became of one scenario, a script in `scenarios`.

mod inside;

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use pagewire_guest::{Guest, Report};

/// What all scripts begin with.
const WORDS: &str = include_str!("words.sh");

macro_rules! scenarios {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("scenarios/", $name, ".sh")))),*]
    };
}

static REPORT: LazyLock<Report> = LazyLock::new(|| {
    let scenarios = scenarios![
        "ext4",
        "mapped",
        "by-ioctl",
        "server-killed",
        "server-gone",
        "two-devices",
        "pull",
        "coming-and-going",
        "nbd-client",
        "doctor",
        "study",
    ];
    let program = std::env::current_exe().unwrap();
    let name = program.file_name().unwrap().to_str().unwrap();
    let mut guest = Guest::new("block")
        .module("nbd nbds_max=4")
        .module("loop")
        .module("sch_netem")
        .module("tun")
        .program("mkfs.ext4")
        .program("nbd-client")
        .program("tc")
        .binary(Path::new(env!("CARGO_BIN_EXE_pagewire")))
        .binary(&program)
        .limit(Duration::from_secs(180));
    for (scenario, script) in scenarios {
        guest = guest.scenario(scenario, &format!("test_program={name}\n{WORDS}\n{script}"));
    }
    guest.boot()
});

/// Makes sure that a scenario has ended well, and answers what it has said.
fn ended_well(scenario: &str) -> &'static str {
    if pagewire_guest::skipped() { "" } else { REPORT.assert(scenario) }
}

#[test]
fn a_file_system_on_a_device_is_there_when_the_device_comes_back() {
    ended_well("ext4");
}

#[test]
fn a_device_can_be_mapped() {
    let said = ended_well("mapped");
    assert!(said.is_empty() || said.contains("1 passed"), "{said}");
}

#[test]
fn a_device_is_made_by_ioctl_too() {
    let said = ended_well("by-ioctl");
    assert!(said.is_empty() || said.contains("1 passed"), "{said}");
}

#[test]
fn what_was_synced_and_what_was_not_survives_a_killed_server() {
    ended_well("server-killed");
}

#[test]
fn without_its_server_a_device_answers_with_errors_after_the_patience() {
    ended_well("server-gone");
}

#[test]
fn two_devices_know_nothing_of_each_other() {
    ended_well("two-devices");
}

#[test]
fn a_pull_in_the_background_spares_a_file_system_the_round_trips() {
    print!("{}", ended_well("pull"));
}

#[test]
fn devices_come_and_go_and_what_a_killed_process_has_left_is_taken_down() {
    ended_well("coming-and-going");
}

#[test]
fn a_study_measures_devices() {
    let said = ended_well("study");
    assert!(said.is_empty() || said.contains("2 measured"), "{said}");
}

#[test]
fn the_client_of_debian_uses_the_server() {
    ended_well("nbd-client");
}

#[test]
fn the_doctor_finds_the_module_and_who_may_use_it() {
    ended_well("doctor");
}
