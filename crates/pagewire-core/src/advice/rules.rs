//! What is ruled out: by the workload, or by the machine.

use super::abilities::{Abilities, Use, Works};
use super::machine::Machine;
use super::phrase::size;
use super::workload::{Need, Workload};
use super::{Method, Mode, Way};

/// One reason against a way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Against {
    /// A whole sentence.
    pub(super) why: String,
    /// The command that would change it: where the machine is the reason.
    pub(super) mend: Option<String>,
}

/// All that speaks against a way so much that it cannot be used. None: it can.
pub(super) fn against(
    way: Way,
    workload: &Workload,
    machine: &Machine,
    abilities: &Abilities,
) -> Vec<Against> {
    let by_workload = match way.method {
        Method::Userfaultfd => against_userfaultfd(workload, machine),
        Method::Fuse => against_fuse(way.mode, workload),
        Method::Nbd => against_nbd(way.mode, workload),
        Method::Mirror => against_mirror(workload),
    };
    let mut against: Vec<Against> = by_workload.into_iter().map(|why| Against { why, mend: None }).collect();
    against.extend(by_machine(way, workload, abilities));
    against
}

/// What is needed of the machine.
pub(super) fn needed(way: Way, workload: &Workload) -> Use {
    match way.method {
        Method::Userfaultfd if workload.vm_ram => Use::Monitor,
        Method::Userfaultfd if workload.is_read_only() => Use::Map,
        Method::Userfaultfd => Use::MapWritable,
        Method::Fuse => Use::Mount,
        Method::Nbd if workload.need == Need::NbdClient => Use::Serve,
        Method::Nbd => Use::Device,
        Method::Mirror => Use::Mirror,
    }
}

fn by_machine(way: Way, workload: &Workload, abilities: &Abilities) -> Option<Against> {
    let ability = abilities.of(needed(way, workload));
    match &ability.works {
        Works::No(why) => {
            let why = format!("On this machine, it does not work: {why}.");
            Some(Against { why, mend: ability.mend.clone() })
        }
        // KVM touches pages in the kernel: there is no half of it.
        Works::Partly(why) if workload.vm_ram && way.method == Method::Userfaultfd => {
            let why = format!("A VM's faults are those of the kernel, and on this machine {why}.");
            Some(Against { why, mend: ability.mend.clone() })
        }
        _ => None,
    }
}

fn against_userfaultfd(workload: &Workload, machine: &Machine) -> Vec<String> {
    let mut why: Vec<String> = Vec::new();
    match workload.need {
        Need::BlockDevice => {
            why.push("The program wants a block device, and a mapping is memory of a process.".into());
        }
        Need::NbdClient => why.push("The program speaks NBD, and a mapping is memory of a process.".into()),
        Need::File => why.push("The program wants a file, and a mapping has no path.".into()),
        Need::Any | Need::Memory => {}
    }
    if workload.unmodified && !workload.vm_ram {
        why.push("A program maps a region by the library, and this one is not to be changed.".into());
    }
    if workload.shared && !workload.vm_ram {
        why.push("A mapping is private to one process, and several programs are to share the region.".into());
    }
    if workload.vm_ram && workload.survives_crash {
        why.push(
            "A guest has no flush: what it writes is in its memory alone, and gone with its host.".into(),
        );
    }
    if workload.vm_ram && workload.followers > 0 {
        why.push("What a guest writes is not pushed, so no other host can follow.".into());
    }
    if workload.moves_guest() {
        why.push(
            "What a guest writes into memory that its monitor fills by a userfaultfd can be told only inside the monitor, \
             so it cannot be moved while it runs."
                .into(),
        );
    }
    let (touched, available) = (workload.touched_bytes(), machine.memory.available as f64);
    if touched > available {
        why.push(format!(
            "What is touched stays in memory, {} of it, and this machine has {} free.",
            size(touched),
            size(available)
        ));
    }
    why
}

fn against_fuse(mode: Mode, workload: &Workload) -> Vec<String> {
    let mut why: Vec<String> = Vec::new();
    match workload.need {
        Need::BlockDevice => why.push("The program wants a block device, and this is a file.".into()),
        Need::NbdClient => why.push("The program speaks NBD, and this is a file.".into()),
        Need::Any | Need::Memory | Need::File => {}
    }
    if mode == Mode::Direct && workload.vm_ram {
        why.push("A guest would wait for a round trip with each access to its memory.".into());
    }
    why
}

fn against_nbd(mode: Mode, workload: &Workload) -> Vec<String> {
    let mut why: Vec<String> = Vec::new();
    if workload.need == Need::File {
        why.push(
            "The program wants a file whose bytes are the region, and a device has files only by a file system on it."
                .into(),
        );
    }
    if workload.vm_ram && workload.need != Need::BlockDevice {
        why.push("A guest's memory is no disk.".into());
    }
    if workload.followers > 0 {
        why.push(
            "A device shows one epoch for as long as it is there, so hosts that use one would not follow."
                .into(),
        );
    }
    if workload.need == Need::NbdClient && mode == Mode::Managed {
        why.push(
            "The copy of an NBD client is its own, if it keeps any: the export itself is direct.".into(),
        );
    }
    if workload.need != Need::NbdClient && !workload.region.is_multiple_of(512) {
        why.push(
            "The length of a block device is a multiple of 512 bytes, and that of this region is not.".into(),
        );
    }
    why
}

fn against_mirror(workload: &Workload) -> Vec<String> {
    let mut why: Vec<String> = Vec::new();
    match workload.need {
        Need::BlockDevice => why.push("The program wants a block device, and a mirror keeps files.".into()),
        Need::NbdClient => why.push("The program speaks NBD, and a mirror keeps files.".into()),
        Need::Any | Need::Memory | Need::File => {}
    }
    if workload.is_read_only() {
        why.push(
            "Nothing is written, so there is nothing to keep in step; and a mirror's copy is of use when all of it has \
             arrived, not at once."
                .into(),
        );
    } else if workload.followers == 0 && !workload.moves {
        why.push("A mirror is for hosts that follow, and none does.".into());
    }
    if workload.survives_crash {
        why.push(
            "Nobody tells a mirror of an fsync: what was written since its last round is lost with the host."
                .into(),
        );
    }
    why
}

/// What to do where everything is ruled out.
pub(super) fn nothing_fits(workload: &Workload, refused: &[(Way, Vec<Against>)]) -> String {
    let mendable = refused.iter().filter(|(_, against)| against.iter().all(|one| one.mend.is_some()));
    let mut mends: Vec<String> = Vec::new();
    for (way, against) in mendable {
        for mend in against.iter().filter_map(|one| one.mend.as_ref()) {
            let text = format!("{} would, after: {mend}", way.method.as_str());
            if !mends.contains(&text) {
                mends.push(text);
            }
        }
    }
    let copy = match (workload.need, workload.is_read_only()) {
        (Need::BlockDevice, _) => {
            " A VM monitor or a program that speaks NBD needs no device: pagewire serve --nbd."
        }
        (Need::NbdClient, _) => "",
        (_, true) => {
            " A copy that is complete before the program starts needs nothing of the kernel: pagewire copy."
        }
        (_, false) => {
            " A copy before the program starts, and one with --delta after it has ended, needs nothing of the kernel: pagewire copy."
        }
    };
    match mends.is_empty() {
        true => format!(
            "No method fits, and no change to this machine would make one fit: the wishes exclude each other.{copy}"
        ),
        false => {
            format!("No method works on this machine as it is. {}.{copy}", mends.join("; "))
        }
    }
}
