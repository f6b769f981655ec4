//! Use cases and what is expected for them, made-up machines, and what must hold for all workloads.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

mod machines;

use machines::{container, nothing, old_kernel, ordinary_user, without_fuse};

fn best(workload: &Workload, machine: &Machine) -> Recommendation {
    let advice = advise(workload, machine, &Figures::built_in());
    advice.best().cloned().unwrap_or_else(|| panic!("{workload:?}: {advice:#?}"))
}

fn ruled_out(advice: &Advice, method: Method) -> String {
    let all = advice.ruled_out.iter().filter(|out| out.method == method);
    all.flat_map(|out| out.why.clone()).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_use_case_has_its_method() {
    use Method::{Fuse, Mirror, Nbd, Userfaultfd};
    for (case, method, background) in [
        (UseCase::Model, Fuse, true),
        (UseCase::Assets, Fuse, false),
        (UseCase::Memory, Userfaultfd, true),
        (UseCase::State, Userfaultfd, true),
        (UseCase::Database, Fuse, true),
        (UseCase::Snapshot, Userfaultfd, true),
        (UseCase::VmRam, Fuse, true),
        (UseCase::Replica, Mirror, false),
        (UseCase::Disk, Nbd, true),
    ] {
        let best = best(&case.workload(), &Machine::unlimited());
        assert_eq!((best.way.method, best.way.mode), (method, Mode::Managed), "{}: {best:#?}", case.as_str());
        assert_eq!((best.fit, best.background), (Fit::MadeFor, background), "{}: {best:#?}", case.as_str());
        assert!(!best.reasons.is_empty());
        assert_eq!(case.as_str().parse(), Ok(case));
    }
    let unknown = "nonsense".parse::<UseCase>().unwrap_err().to_string();
    assert!(unknown.contains("'nonsense'") && unknown.contains("vm-ram"), "{unknown}");
}

#[test]
fn what_a_workload_forbids_is_said() {
    let machine = Machine::unlimited();
    let about = |workload: &Workload| advise(workload, &machine, &Figures::built_in());
    let model = UseCase::Model.workload();
    let advice = about(&model);
    let said = ruled_out(&advice, Method::Userfaultfd);
    for text in ["a mapping has no path", "not to be changed", "several programs"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    assert!(ruled_out(&advice, Method::Mirror).contains("Nothing is written"));
    assert!(ruled_out(&about(&UseCase::Database.workload()), Method::Mirror).contains("fsync"));
    assert!(ruled_out(&about(&UseCase::Replica.workload()), Method::Nbd).contains("would not follow"));
    let vm = Workload { survives_crash: true, followers: 1, ..UseCase::VmRam.workload() };
    let said = ruled_out(&about(&vm), Method::Userfaultfd);
    for text in ["no flush", "not pushed", "cannot be moved"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    // What the workload forbids no command mends.
    assert!(advice.ruled_out.iter().all(|out| out.mend.is_empty()), "{advice:#?}");
    let odd = Workload { region: 1_000_001, ..UseCase::Disk.workload() };
    let advice = about(&odd);
    assert!(advice.ranked.is_empty(), "{advice:#?}");
    let said = advice.nothing_fits.unwrap();
    assert!(said.contains("the wishes exclude each other"), "{said}");
}

#[test]
fn programs_that_speak_nbd_need_no_device() {
    let workload = Workload { need: Need::NbdClient, ..UseCase::Disk.workload() };
    let best = best(&workload, &nothing());
    assert_eq!((best.way.method, best.way.mode), (Method::Nbd, Mode::Direct));
    assert_eq!(best.fit, Fit::MadeFor);
}

#[test]
fn a_machine_that_lacks_something_is_told_what_mends_it() {
    let figures = Figures::built_in();
    let model = UseCase::Model.workload();
    let advice = advise(&model, &without_fuse(), &figures);
    assert!(advice.best().is_none());
    let said = advice.nothing_fits.unwrap();
    assert!(said.contains("sudo modprobe fuse") && said.contains("pagewire copy"), "{said}");
    let disk = advise(&UseCase::Disk.workload(), &ordinary_user(), &figures);
    assert!(disk.best().is_none());
    assert!(disk.ruled_out.iter().any(|out| out.mend == ["sudo modprobe nbd"]), "{disk:#?}");
    let container = advise(&UseCase::Memory.workload(), &container(), &figures);
    assert!(ruled_out(&container, Method::Userfaultfd).contains("seccomp"), "{container:#?}");
    assert!(container.nothing_fits.is_some());
}

#[test]
fn half_a_userfaultfd_is_told_from_a_whole_one() {
    let mut machine = ordinary_user();
    let memory = UseCase::Memory.workload();
    let advice = advise(&memory, &machine, &Figures::built_in());
    let mapping = advice.ranked.iter().find(|one| one.way.method == Method::Userfaultfd).unwrap();
    assert!(mapping.caveats.iter().any(|text| text.contains("EFAULT")), "{mapping:#?}");
    assert_eq!(mapping.fit, Fit::Good);
    // With the device for this user there is no half of it.
    machine.userfaultfd.device = Answer::Works;
    machine.userfaultfd.device_node = Access::Allowed;
    let mapping = best(&memory, &machine);
    assert_eq!((mapping.way.method, mapping.fit), (Method::Userfaultfd, Fit::MadeFor));
    // And a VM's faults are the kernel's.
    let snapshot = advise(&UseCase::Snapshot.workload(), &ordinary_user(), &Figures::built_in());
    assert!(ruled_out(&snapshot, Method::Userfaultfd).contains("kernel"), "{snapshot:#?}");
}

#[test]
fn old_kernels_find_changes_by_other_means() {
    let advice = advise(&UseCase::State.workload(), &old_kernel(), &Figures::built_in());
    let mapping = advice.ranked.iter().find(|one| one.way.method == Method::Userfaultfd).unwrap();
    assert!(mapping.caveats.iter().any(|text| text.contains("Linux 6.7")), "{mapping:#?}");
}

#[test]
fn what_does_not_fit_memory_is_not_pulled_into_it() {
    let mut machine = Machine::unlimited();
    machine.memory.available = 4 << 30;
    let memory = Workload { region: 8 << 30, touched: 0.1, ..UseCase::Memory.workload() };
    let mapping = best(&memory, &machine);
    assert_eq!((mapping.way.method, mapping.background), (Method::Userfaultfd, false));
    let all = Workload { touched: 1.0, ..memory };
    assert_eq!(best(&all, &machine).way.method, Method::Fuse, "the page cache can let go of what it has");
    let disk = best(&UseCase::Disk.workload(), &machine);
    assert!(disk.cache_file && disk.background, "{disk:#?}");
}

#[test]
fn a_busy_writer_is_not_tracked() {
    let busy = Workload { writes: Writes::scattered(1e6), ..UseCase::State.workload() };
    let advice = advise(&busy, &Machine::unlimited(), &Figures::built_in());
    let mapping = advice.ranked.iter().find(|one| one.way.method == Method::Userfaultfd).unwrap();
    assert!(mapping.caveats.iter().any(|text| text.contains("of a processor")), "{mapping:#?}");
    assert!(mapping.fit > Fit::MadeFor);
    // What was measured has the last word.
    let mut figures = Figures::built_in();
    figures.tracked_write = Figure::measured(1e-9);
    let advice = advise(&busy, &Machine::unlimited(), &figures);
    let mapping = advice.ranked.iter().find(|one| one.way.method == Method::Userfaultfd).unwrap();
    assert!(!mapping.caveats.iter().any(|text| text.contains("of a processor")), "{mapping:#?}");
}

#[test]
fn measured_figures_decide_among_ways_that_fit_alike() {
    let workload = Workload { need: Need::Any, unmodified: false, ..UseCase::Memory.workload() };
    assert_eq!(best(&workload, &Machine::unlimited()).way.method, Method::Userfaultfd);
    let mut figures = Figures::built_in();
    let fuse = Way { method: Method::Fuse, mode: Mode::Managed };
    figures.of_mut(fuse).unwrap().first_byte = Figure::measured(1e-6);
    let near = Workload { round_trip: Duration::from_micros(20), ..workload };
    let advice = advise(&near, &Machine::unlimited(), &figures);
    assert_eq!(advice.ranked[0].way, fuse);
    assert!(advice.ranked[0].reasons.iter().any(|text| text.contains("(measured)")), "{advice:#?}");
}

#[test]
fn a_difference_that_noise_makes_decides_nothing() {
    let workload = Workload { need: Need::Any, unmodified: false, ..UseCase::Memory.workload() };
    let fuse = Way { method: Method::Fuse, mode: Mode::Managed };
    let mapping = Way { method: Method::Userfaultfd, mode: Mode::Managed };
    let ranked = |of_mapping: f64, of_fuse: f64| {
        let mut figures = Figures::built_in();
        figures.of_mut(mapping).unwrap().first_byte = Figure::measured(of_mapping);
        figures.of_mut(fuse).unwrap().first_byte = Figure::measured(of_fuse);
        let advice = advise(&workload, &Machine::unlimited(), &figures);
        advice.ranked.iter().filter(|one| one.fit == Fit::Good).map(|one| one.way).collect::<Vec<_>>()
    };
    // The link takes 500 µs of each.
    for (of_mapping, of_fuse) in [(50e-6, 50e-6), (50e-6, 45e-6), (100e-6, 10e-6), (10e-6, 100e-6)] {
        assert_eq!(ranked(of_mapping, of_fuse), [mapping, fuse], "{of_mapping} {of_fuse}");
    }
    assert_eq!(ranked(200e-6, 20e-6), [fuse, mapping], "what is more than that decides");
    assert_eq!(ranked(f64::MAX, 20e-6), [fuse, mapping]);
}

#[test]
fn near_regions_may_be_direct_and_far_ones_not() {
    let far = advise(&UseCase::Database.workload(), &Machine::unlimited(), &Figures::built_in());
    let direct = far.ranked.iter().find(|one| one.way.mode == Mode::Direct).unwrap();
    assert_eq!(direct.fit, Fit::AtAPrice);
    assert!(direct.caveats.iter().any(|text| text.contains("round trip")));
    let near = Workload { round_trip: Duration::from_micros(40), ..UseCase::Database.workload() };
    let near = advise(&near, &Machine::unlimited(), &Figures::built_in());
    let direct = near.ranked.iter().find(|one| one.way.mode == Mode::Direct).unwrap();
    assert_eq!(direct.fit, Fit::Good);
}

#[test]
fn state_moves_by_what_it_dirties() {
    let vm = UseCase::VmRam.workload();
    let how =
        |workload: &Workload| advise(workload, &Machine::unlimited(), &Figures::built_in()).moving.unwrap();
    let dirtying = |rate: f64| Workload { writes: Writes::dirtying(rate), ..vm };
    let calm = how(&vm);
    assert_eq!(calm.how, Transfer::PreCopy, "{calm:#?}");
    assert!(calm.downtime_seconds <= 0.3 && calm.others.len() == 3, "{calm:#?}");
    let read = Figures::built_in().of(Way { method: Method::Userfaultfd, mode: Mode::Managed }).read.value;
    let slow = how(&Workload { rate: read / 2.0, ..vm });
    assert!(slow.reasons[0].contains(" on a link of "), "{slow:#?}");
    let fast = how(&Workload { rate: read * 2.0, ..vm });
    assert!(fast.reasons[0].contains(" arrive."), "{fast:#?}");
    assert_eq!(how(&dirtying(0.9e9)).how, Transfer::Hybrid);
    assert_eq!(how(&dirtying(3e9)).how, Transfer::PostCopy);
    assert_eq!(how(&Workload { writes: Writes::NONE, ..vm }).how, Transfer::PostCopy);
    let safe = Workload { survives_crash: true, ..dirtying(0.9e9) };
    assert_eq!(how(&safe).how, Transfer::PreCopy, "{:#?}", how(&safe));
    let safe = how(&Workload { survives_crash: true, ..dirtying(3e9) });
    assert_eq!(safe.how, Transfer::StopAndCopy);
    assert!(safe.downtime_seconds > 1.0);
    let small = Workload { region: 1 << 20, ..vm };
    assert_eq!(how(&small).how, Transfer::StopAndCopy);
    assert_eq!(advise(&UseCase::Model.workload(), &Machine::unlimited(), &Figures::built_in()).moving, None);
}

#[test]
fn a_machine_that_lacks_nothing_is_all_good() {
    for finding in checkup(&Machine::unlimited()) {
        assert_eq!((finding.state, &finding.mend), (State::Good, &None), "{finding:?}");
    }
    let abilities = Machine::unlimited().abilities();
    assert!(abilities.iter().all(|ability| ability.works == Works::Yes), "{abilities:#?}");
}

#[test]
fn whatever_is_missing_has_what_mends_it_and_what_works_without_it() {
    for machine in [nothing(), old_kernel(), ordinary_user(), container(), without_fuse()] {
        let findings = checkup(&machine);
        assert!(findings.iter().any(|finding| finding.state != State::Good), "{machine:#?}");
        for finding in &findings {
            assert_eq!(finding.state == State::Good, finding.mend.is_none(), "{finding:?}");
            assert_eq!(finding.state == State::Good, finding.without.is_none(), "{finding:?}");
            assert!(finding.mend.as_ref().is_none_or(|mend| !mend.is_empty()), "{finding:?}");
        }
        for ability in machine.abilities().iter() {
            assert_eq!(ability.works == Works::Yes, ability.mend.is_none(), "{ability:?}");
        }
        // What needs nothing of the kernel is always there.
        assert!(
            machine.abilities().of(Use::Serve).is_there() && machine.abilities().of(Use::Mirror).is_there()
        );
    }
}

#[test]
fn findings_say_what_is_the_case() {
    let find = |machine: &Machine, what: &str| {
        checkup(machine).into_iter().find(|finding| finding.what == what).unwrap()
    };
    let user = find(&ordinary_user(), "userfaultfd");
    assert_eq!(user.state, State::Limited);
    assert_eq!(user.mend.as_deref(), Some("sudo setfacl -m u:alice:rw /dev/userfaultfd"));
    let fuse = find(&without_fuse(), "FUSE");
    assert_eq!((fuse.state, fuse.mend.as_deref()), (State::Missing, Some("sudo modprobe fuse")));
    let inside = find(&container(), "userfaultfd");
    assert!(inside.mend.unwrap().contains("seccomp"), "a sysctl would not help");
    let old = find(&old_kernel(), "userfaultfd features");
    assert!(
        old.found.contains("WP_ASYNC") && old.mend.as_deref() == Some("boot Linux 6.7 or newer"),
        "{old:?}"
    );
    let user = find(&ordinary_user(), "NBD devices");
    assert_eq!(user.mend.as_deref(), Some("sudo modprobe nbd"));
}

fn workloads() -> impl Strategy<Value = Workload> {
    let needs = vec![Need::Any, Need::Memory, Need::File, Need::BlockDevice, Need::NbdClient];
    let numbers = (0u64..1 << 45, 0.0..1.0f64, 0u64..1_000_000_000, 0.0..1e11f64);
    let writes = prop_oneof![Just(Writes::NONE), (0.0..1e8f64).prop_map(Writes::scattered)];
    let what = (proptest::sample::select(needs), any::<[bool; 6]>(), writes, 0u32..50);
    (numbers, what, 0u64..100_000).prop_map(|(numbers, what, downtime)| {
        let (need, [unmodified, shared, survives_crash, vm_ram, moves, latency], writes, followers) = what;
        Workload {
            region: numbers.0,
            touched: numbers.1,
            round_trip: Duration::from_nanos(numbers.2),
            rate: numbers.3,
            need,
            unmodified,
            shared,
            writes,
            goal: if latency { Goal::Latency } else { Goal::Throughput },
            survives_crash,
            followers,
            vm_ram,
            moves,
            downtime: Duration::from_millis(downtime),
        }
    })
}

fn made_up_machines() -> impl Strategy<Value = Machine> {
    let all =
        vec![Machine::unlimited(), nothing(), old_kernel(), ordinary_user(), container(), without_fuse()];
    (proptest::sample::select(all), 0u64..1 << 40, 1usize..64).prop_map(
        |(mut machine, available, processors)| {
            machine.memory.available = available;
            machine.processors = processors;
            machine
        },
    )
}

proptest! {
    #[test]
    fn nothing_is_recommended_that_cannot_be(workload in workloads(), machine in made_up_machines()) {
        let advice = advise(&workload, &machine, &Figures::built_in());
        let abilities = machine.abilities();
        for one in &advice.ranked {
            prop_assert!(abilities.of(rules::needed(one.way, &workload)).is_there(), "{:?}", one);
            prop_assert!(!one.reasons.is_empty());
            let Way { method, mode } = one.way;
            prop_assert!(!(workload.unmodified && !workload.vm_ram && method == Method::Userfaultfd));
            prop_assert!(!(workload.need == Need::BlockDevice && method != Method::Nbd));
            prop_assert!(!(workload.need == Need::NbdClient && method != Method::Nbd));
            prop_assert!(!(workload.survives_crash && method == Method::Mirror));
            prop_assert!(!(workload.need == Need::File && matches!(method, Method::Nbd | Method::Userfaultfd)));
            prop_assert!(!(method == Method::Userfaultfd && workload.shared && !workload.vm_ram));
            prop_assert!(!(method == Method::Userfaultfd && mode == Mode::Direct));
            prop_assert!(!(method == Method::Userfaultfd && workload.vm_ram && workload.survives_crash));
            prop_assert!(!(method == Method::Nbd && workload.followers > 0));
            prop_assert!(!(method == Method::Mirror && workload.is_read_only()));
            prop_assert!(one.estimate.complete_seconds.is_finite() && one.estimate.first_byte_seconds > 0.0);
        }
        // Each way is either ranked or ruled out, with a reason; and there is always an answer.
        for way in Way::ALL {
            let ranked = advice.ranked.iter().filter(|one| one.way == way).count();
            let out = advice.ruled_out.iter().filter(|out| out.method == way.method && out.mode.is_none_or(|mode| mode == way.mode));
            prop_assert_eq!(ranked + out.clone().count(), 1, "{:?}", way);
            prop_assert!(out.into_iter().all(|out| !out.why.is_empty()));
        }
        prop_assert_eq!(advice.ranked.is_empty(), advice.nothing_fits.is_some());
        prop_assert!(advice.ranked.is_sorted_by_key(|one| one.fit));
        prop_assert_eq!(workload.moves, advice.moving.is_some());
        if let Some(moving) = &advice.moving {
            prop_assert!(moving.downtime_seconds.is_finite() && moving.total_seconds >= moving.downtime_seconds);
            prop_assert!(!(workload.survives_crash && matches!(moving.how, Transfer::PostCopy | Transfer::Hybrid)));
        }
        // Every sentence is one.
        let sentences = advice.ranked.iter().flat_map(|one| one.reasons.iter().chain(&one.caveats));
        for text in sentences.chain(advice.ruled_out.iter().flat_map(|out| &out.why)) {
            prop_assert!(text.ends_with('.') && !text.contains("  ") && !text.contains("NaN"), "{}", text);
        }
    }
}
