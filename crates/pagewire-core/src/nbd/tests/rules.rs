//! What a request may ask for, as the specification has it.

use proptest::prelude::*;

use crate::chunk::ByteRange;
use crate::nbd::request::StatusPayload;
use crate::nbd::*;

const SIZE: u64 = 1 << 20;

fn all_flags() -> TransmissionFlags {
    TransmissionFlags(u16::MAX).without(TransmissionFlags::READ_ONLY)
}

fn terms() -> Terms {
    Terms { size: SIZE, flags: all_flags(), headers: Headers::Structured, minimum: 1, contexts: true }
}

fn ask(command: CommandType, flags: CommandFlags, offset: u64, length: u64) -> Request {
    Request { flags, command, cookie: 1, offset, length }
}

fn refused(request: Request, terms: &Terms) -> ErrorNumber {
    match request.parse(terms) {
        Err(refusal) => refusal.error,
        Ok(command) => panic!("{request:?} is taken for {command:?}"),
    }
}

const NONE: CommandFlags = CommandFlags::NONE;

#[test]
fn beyond_the_end_each_command_has_its_error() {
    let terms = terms();
    for (command, error) in [
        (CommandType::READ, ErrorNumber::EINVAL),
        (CommandType::WRITE, ErrorNumber::ENOSPC),
        (CommandType::WRITE_ZEROES, ErrorNumber::ENOSPC),
        (CommandType::TRIM, ErrorNumber::EINVAL),
        (CommandType::CACHE, ErrorNumber::EINVAL),
        (CommandType::BLOCK_STATUS, ErrorNumber::EINVAL),
    ] {
        assert_eq!(refused(ask(command, NONE, SIZE - 1, 2), &terms), error, "{command}");
        assert_eq!(refused(ask(command, NONE, u64::MAX, 2), &terms), error, "{command} that wraps");
        assert!(ask(command, NONE, SIZE - 2, 2).parse(&terms).is_ok(), "{command} up to the end");
    }
}

#[test]
fn who_may_only_read_is_told_so_first() {
    let terms = Terms { flags: all_flags().with(TransmissionFlags::READ_ONLY), ..terms() };
    for command in [CommandType::WRITE, CommandType::WRITE_ZEROES, CommandType::TRIM] {
        assert_eq!(refused(ask(command, NONE, u64::MAX, 2), &terms), ErrorNumber::EPERM, "{command}");
    }
    for command in [CommandType::READ, CommandType::CACHE, CommandType::BLOCK_STATUS] {
        assert!(ask(command, NONE, 0, 2).parse(&terms).is_ok(), "{command}");
    }
    assert_eq!(ask(CommandType::FLUSH, NONE, 0, 0).parse(&terms), Ok(Command::Flush));
}

#[test]
fn flags_belong_to_commands() {
    let terms = terms();
    let flags = [
        CommandFlags::FUA,
        CommandFlags::NO_HOLE,
        CommandFlags::DF,
        CommandFlags::REQ_ONE,
        CommandFlags::FAST_ZERO,
        CommandFlags::PAYLOAD_LEN,
        CommandFlags(1 << 9),
    ];
    for (command, allowed) in [
        (CommandType::READ, CommandFlags::DF),
        (CommandType::WRITE, NONE),
        (CommandType::WRITE_ZEROES, CommandFlags::NO_HOLE.with(CommandFlags::FAST_ZERO)),
        (CommandType::TRIM, NONE),
        (CommandType::CACHE, NONE),
        (CommandType::BLOCK_STATUS, CommandFlags::REQ_ONE),
    ] {
        for flag in flags {
            let request = ask(command, flag, 0, 512);
            // FUA is accepted with every command, since clients set it with every one.
            if flag == CommandFlags::FUA || allowed.contains(flag) {
                assert!(request.parse(&terms).is_ok(), "{request:?}");
            } else {
                assert_eq!(refused(request, &terms), ErrorNumber::EINVAL, "{request:?}");
            }
        }
    }
    // What was not offered cannot be used.
    let bare = Terms { flags: TransmissionFlags::HAS_FLAGS, ..terms };
    for (command, flag) in [
        (CommandType::READ, CommandFlags::DF),
        (CommandType::WRITE, CommandFlags::FUA),
        (CommandType::WRITE_ZEROES, NONE),
        (CommandType::TRIM, NONE),
    ] {
        assert_eq!(refused(ask(command, flag, 0, 512), &bare), ErrorNumber::EINVAL, "{command}");
    }
}

#[test]
fn what_nobody_knows_is_refused() {
    for command in [CommandType::RESIZE, CommandType(77)] {
        assert_eq!(refused(ask(command, NONE, 0, 512), &terms()), ErrorNumber::EINVAL);
    }
    assert_eq!(refused(ask(CommandType::FLUSH, NONE, 1, 0), &terms()), ErrorNumber::EINVAL);
    assert_eq!(refused(ask(CommandType::FLUSH, NONE, 0, 1), &terms()), ErrorNumber::EINVAL);
    assert_eq!(ask(CommandType::DISC, NONE, 0, 0).parse(&terms()), Ok(Command::Disconnect));
}

#[test]
fn large_reads_are_refused() {
    let terms = Terms { size: 1 << 40, ..terms() };
    let longest = u64::from(MAX_PAYLOAD);
    assert!(ask(CommandType::READ, CommandFlags::DF, 0, longest).parse(&terms).is_ok());
    assert_eq!(refused(ask(CommandType::READ, NONE, 0, longest + 1), &terms), ErrorNumber::EINVAL);
    let whole = ask(CommandType::READ, CommandFlags::DF, 0, longest + 1);
    assert_eq!(refused(whole, &terms), ErrorNumber::EOVERFLOW);
    // What has no payload may be as long as the export.
    let extended = Terms { headers: Headers::Extended, ..terms };
    for command in
        [CommandType::WRITE_ZEROES, CommandType::TRIM, CommandType::BLOCK_STATUS, CommandType::CACHE]
    {
        assert!(ask(command, NONE, 0, 1 << 40).parse(&extended).is_ok(), "{command}");
    }
}

#[test]
fn the_minimum_block_size_is_kept_but_for_the_end() {
    let terms = Terms { size: 10_000, minimum: 512, ..terms() };
    for (offset, length, good) in
        [(0, 512, true), (512, 10_000 - 512, true), (1, 512, false), (0, 511, false), (10_000, 0, true)]
    {
        let request = ask(CommandType::READ, NONE, offset, length);
        assert_eq!(request.parse(&terms).is_ok(), good, "{request:?}");
    }
    assert_eq!(refused(ask(CommandType::WRITE, NONE, 1, 512), &terms), ErrorNumber::EINVAL);
}

#[test]
fn a_status_needs_a_context_and_a_byte() {
    let without = Terms { contexts: false, ..terms() };
    let status = ask(CommandType::BLOCK_STATUS, NONE, 0, 512);
    assert_eq!(refused(status, &without), ErrorNumber::EINVAL);
    assert_eq!(refused(ask(CommandType::BLOCK_STATUS, NONE, 0, 0), &terms()), ErrorNumber::EINVAL);
}

#[test]
fn payloads_belong_to_extended_headers() {
    let extended = Terms { headers: Headers::Extended, ..terms() };
    let with = |command| ask(command, CommandFlags::PAYLOAD_LEN, 0, 12);
    assert!(with(CommandType::WRITE).parse(&extended).is_ok());
    // As qemu sends it.
    assert!(ask(CommandType::WRITE, NONE, 0, 12).parse(&extended).is_ok());
    assert_eq!(refused(with(CommandType::READ), &extended), ErrorNumber::EINVAL);
    assert_eq!(refused(with(CommandType::TRIM), &extended), ErrorNumber::EINVAL);
    assert_eq!((with(CommandType::READ).payload(true), with(CommandType::READ).payload(false)), (12, 0));
    assert_eq!(ask(CommandType::WRITE, NONE, 0, 12).payload(false), 12);
    assert_eq!(ask(CommandType::WRITE, NONE, 0, 12).payload(true), 12);
    assert_eq!(ask(CommandType::READ, NONE, 0, 12).payload(true), 0);
    assert!(with(CommandType::BLOCK_STATUS).parse(&extended).is_ok());

    let known = [1, 2, 3];
    let of = |length, contexts: &[u32]| StatusPayload { length, contexts: contexts.into() };
    let status = |payload: StatusPayload| extended.status_of(4096, &payload, &known, false);
    let range = ByteRange::new(4096, 4596);
    assert_eq!(status(of(500, &[3, 1])), Ok(Command::BlockStatus { range, one: false }));
    for bad in
        [of(500, &[]), of(500, &[1, 1]), of(500, &[4]), of(0, &[1]), of(SIZE, &[1]), of(9, &[1, 2, 3, 1])]
    {
        assert_eq!(status(bad.clone()).map_err(|refusal| refusal.error), Err(ErrorNumber::EINVAL), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn what_is_allowed_is_within_the_export(
        flags: u16, command in 0u16..10, offset in 0..SIZE * 2, length in 0..SIZE * 2, offered: u16, extended: bool,
    ) {
        let headers = if extended { Headers::Extended } else { Headers::Structured };
        let terms = Terms { headers, flags: TransmissionFlags(offered), ..terms() };
        let request = ask(CommandType(command), CommandFlags(flags), offset, length);
        match request.parse(&terms) {
            Ok(
                Command::Read { range, .. }
                | Command::Write { range, .. }
                | Command::WriteZeroes { range, .. }
                | Command::Trim { range, .. }
                | Command::Cache(range)
                | Command::BlockStatus { range, .. },
            ) => prop_assert!(range.end <= SIZE && range.start <= range.end),
            Ok(Command::Flush | Command::Disconnect) => {}
            Err(refusal) => prop_assert!(refusal.error.name().is_some() && !refusal.reason.is_empty()),
        }
    }
}
