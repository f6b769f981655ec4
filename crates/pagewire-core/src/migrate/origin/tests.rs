//! The origin, one request after another. What comes of all orders of things is tried by the simulation.

use super::*;
use crate::migrate::RefusalKind;

const ID: MigrationId = MigrationId([1; 16]);
const OTHER: MigrationId = MigrationId([2; 16]);

/// Carries out what is to be done until nothing is; the effect that `failing` names fails.
fn carry_out(origin: &mut Origin, failing: Option<&OriginEffect>) -> Vec<OriginEffect> {
    let mut effects = Vec::new();
    while let Some(effect) = origin.poll_effect() {
        assert_eq!(origin.poll_effect(), None, "one thing at a time");
        origin.handle_result(if Some(&effect) == failing { Err("it fails".to_owned()) } else { Ok(()) });
        effects.push(effect);
    }
    effects
}

fn answer(origin: &mut Origin, request: Request) -> Answer {
    for _ in 0..3 {
        match origin.handle_request(request) {
            Answer::Wait => carry_out(origin, None),
            answer => return answer,
        };
    }
    Answer::Wait
}

fn done(origin: &mut Origin, request: Request) -> Reply {
    match answer(origin, request) {
        Answer::Done(reply) => reply,
        other => panic!("{} is answered by {other:?}", request.name()),
    }
}

fn refused(origin: &mut Origin, request: Request) -> Refusal {
    match answer(origin, request) {
        Answer::Refused(refusal) => refusal,
        other => panic!("{} is answered by {other:?}", request.name()),
    }
}

fn begun(origin: &mut Origin) -> u64 {
    match done(origin, Request::Begin { id: ID }) {
        Reply::Begun { generation } => generation,
        other => panic!("{other:?}"),
    }
}

fn offered(origin: &mut Origin) -> Token {
    let generation = begun(origin);
    match done(origin, Request::Switch { id: ID, generation, number: 1 }) {
        Reply::Offered { token, number: 1 } => token,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_request_is_answered_alike_when_it_is_asked_again() {
    let mut origin = Origin::new(None, 77);
    let generation = begun(&mut origin);
    assert_eq!(begun(&mut origin), generation);
    let round = |number| Request::Round { id: ID, generation, number };
    for number in [1, 1, 2, 2] {
        assert_eq!(done(&mut origin, round(number)), Reply::Taken { number });
    }
    for number in [0, 1, 4, u64::MAX] {
        assert!(matches!(refused(&mut origin, round(number)), Refusal::OutOfTurn(_)));
    }
    let switch = Request::Switch { id: ID, generation, number: 3 };
    let Reply::Offered { token, .. } = done(&mut origin, switch) else { panic!("it offers") };
    assert_eq!(done(&mut origin, switch), Reply::Offered { token, number: 3 });
    assert_eq!(begun(&mut origin), generation, "a lost connection is made again");
    let (accept, complete) = (Request::Accept { id: ID, token }, Request::Complete { id: ID, token });
    assert!(matches!(refused(&mut origin, complete), Refusal::OutOfTurn(_)));
    for _ in 0..2 {
        assert_eq!(done(&mut origin, accept), Reply::Accepted);
    }
    assert_eq!(refused(&mut origin, Request::Abort { id: ID }), Refusal::Moved);
    for _ in 0..2 {
        assert_eq!(done(&mut origin, complete), Reply::Completed);
    }
    assert_eq!((origin.phase(), origin.may_run()), (Phase::Released, false));
}

#[test]
fn a_destination_that_has_everything_at_once_needs_nothing_to_be_kept() {
    let mut origin = Origin::new(None, 77);
    let generation = begun(&mut origin);
    let Reply::Offered { token, .. } = done(&mut origin, Request::Switch { id: ID, generation, number: 1 })
    else {
        panic!("it offers")
    };
    assert_eq!(origin.handle_request(Request::Accept { id: ID, token }), Answer::Wait);
    // Its record is written, and the rest is not begun.
    assert!(matches!(origin.poll_effect(), Some(OriginEffect::Record(_))));
    origin.handle_result(Ok(()));
    assert!(matches!(refused(&mut origin, Request::Complete { id: ID, token: Token(1) }), Refusal::Moved));
    assert!(!origin.keeps_for_nobody(), "it was another's token");
    let complete = Request::Complete { id: ID, token };
    assert_eq!(origin.handle_request(complete), Answer::Wait);
    assert!(origin.keeps_for_nobody());
    assert_eq!(origin.poll_effect(), Some(OriginEffect::Keep), "the application is ended all the same");
    assert!(origin.keeps_for_nobody());
    origin.handle_result(Ok(()));
    assert_eq!(done(&mut origin, complete), Reply::Completed);
    assert!(!origin.keeps_for_nobody());
}

#[test]
fn the_last_set_has_what_was_not_received() {
    for (number, confirmed) in [(1, false), (2, true)] {
        let mut origin = Origin::new(None, 5);
        let generation = begun(&mut origin);
        done(&mut origin, Request::Round { id: ID, generation, number: 1 });
        assert_eq!(origin.handle_request(Request::Switch { id: ID, generation, number }), Answer::Wait);
        let effects = carry_out(&mut origin, None);
        let record = OriginEffect::Record(OriginPhase::Offered { id: ID, token: Token(7) });
        assert_eq!(effects, [record, OriginEffect::Suspend, OriginEffect::Freeze { number, confirmed }]);
    }
}

#[test]
fn a_failing_hook_or_disk_ends_it_and_the_application_goes_on() {
    let record = OriginEffect::Record(OriginPhase::Offered { id: ID, token: Token(7) });
    let withdrawn = OriginEffect::Record(OriginPhase::Withdrawn { id: ID });
    let freeze = OriginEffect::Freeze { number: 1, confirmed: true };
    let (suspend, thaw, resume, untrack) =
        (OriginEffect::Suspend, OriginEffect::Thaw, OriginEffect::Resume, OriginEffect::Untrack);
    let cases = [
        (record.clone(), vec![record.clone(), withdrawn.clone(), untrack.clone()]),
        (
            suspend.clone(),
            vec![record.clone(), suspend.clone(), withdrawn.clone(), resume.clone(), untrack.clone()],
        ),
        (freeze.clone(), vec![record, suspend, freeze, withdrawn, thaw, resume, untrack]),
    ];
    for (failing, expected) in cases {
        let mut origin = Origin::new(None, 5);
        let generation = begun(&mut origin);
        let switch = Request::Switch { id: ID, generation, number: 1 };
        assert_eq!(origin.handle_request(switch), Answer::Wait);
        assert_eq!(carry_out(&mut origin, Some(&failing)), expected);
        assert_eq!((origin.phase(), origin.may_run()), (Phase::Idle, true));
        let why = Refusal::Ended(Ending::Failed("it fails".to_owned()));
        assert_eq!(refused(&mut origin, switch), why);
        assert_eq!(refused(&mut origin, Request::Begin { id: ID }), why, "the same one cannot begin again");
        assert_eq!(done(&mut origin, Request::Abort { id: ID }), Reply::Aborted);
        assert!(matches!(done(&mut origin, Request::Begin { id: OTHER }), Reply::Begun { .. }));
    }
}

#[test]
fn a_second_destination_is_refused_until_the_first_is_gone() {
    let mut origin = Origin::new(None, 0);
    begun(&mut origin);
    assert_eq!(refused(&mut origin, Request::Begin { id: OTHER }), Refusal::Busy(ID));
    origin.handle_departure(OTHER);
    assert_eq!(refused(&mut origin, Request::Begin { id: OTHER }), Refusal::Busy(ID));
    origin.handle_departure(ID);
    assert!(matches!(done(&mut origin, Request::Begin { id: OTHER }), Reply::Begun { .. }));
    assert_eq!(refused(&mut origin, Request::Look { id: ID }), Refusal::Ended(Ending::Lapsed));
}

#[test]
fn in_doubt_it_waits_for_the_destination_or_for_force() {
    let mut origin = Origin::new(None, 0);
    let token = offered(&mut origin);
    origin.handle_departure(ID);
    assert_eq!(origin.handle_operator(false), Err(Refusal::InDoubt));
    assert_eq!((origin.phase(), origin.may_run()), (Phase::InDoubt, false));
    let accept = Request::Accept { id: ID, token };
    let mut forced = origin.clone();
    assert_eq!(forced.handle_operator(true), Ok(()));
    let withdrawn = OriginEffect::Record(OriginPhase::Withdrawn { id: ID });
    assert_eq!(forced.handle_request(accept), Answer::Wait, "a restart may forget it yet");
    assert_eq!(carry_out(&mut forced, Some(&withdrawn)), [withdrawn], "force waits for the record");
    assert_eq!(forced.handle_request(accept), Answer::Refused(Refusal::Failed("it fails".to_owned())));
    assert_eq!((forced.may_run(), forced.handle_operator(false)), (false, Ok(())));
    carry_out(&mut forced, None);
    assert!(forced.may_run() && forced.is_settled());
    assert_eq!(refused(&mut forced, accept), Refusal::Ended(Ending::Forced));
    assert_eq!(
        refused(&mut origin, Request::Accept { id: ID, token: Token(token.0 + 1) }).kind(),
        RefusalKind::Over
    );
    // Once ACCEPT is heard, force does not help, also while the record cannot be written.
    assert_eq!(origin.handle_request(accept), Answer::Wait);
    let moved = OriginEffect::Record(OriginPhase::Moved { id: ID, token });
    carry_out(&mut origin, Some(&moved));
    assert_eq!(origin.handle_request(accept), Answer::Refused(Refusal::Failed("it fails".to_owned())));
    assert_eq!(origin.handle_operator(true), Err(Refusal::Moved));
    assert_eq!(refused(&mut origin, Request::Abort { id: ID }), Refusal::Moved);
    origin.handle_retry();
    assert_eq!(done(&mut origin, accept), Reply::Accepted);
}

#[test]
fn a_restart_goes_on_from_the_record() {
    let token = Token(3);
    let start = |phase| Origin::new(phase, 1000);
    for runs in [None, Some(OriginPhase::Withdrawn { id: ID })] {
        let mut origin = start(runs);
        assert!(origin.may_run());
        let round = Request::Round { id: ID, generation: 5, number: 3 };
        assert_eq!(refused(&mut origin, round), Refusal::Unknown);
        begun(&mut origin);
        assert_eq!(refused(&mut origin, round), Refusal::Gap);
    }
    let offered = start(Some(OriginPhase::Offered { id: ID, token }));
    assert_eq!((offered.phase(), offered.may_run()), (Phase::InDoubt, false));
    let switch = Request::Switch { id: ID, generation: 5, number: 3 };
    assert_eq!(refused(&mut offered.clone(), switch), Refusal::SetLost);
    assert_eq!(done(&mut offered.clone(), Request::Accept { id: ID, token }), Reply::Accepted);
    let mut aborted = offered;
    assert_eq!(done(&mut aborted, Request::Abort { id: ID }), Reply::Aborted);
    assert!(aborted.may_run());
    let mut moved = start(Some(OriginPhase::Moved { id: ID, token }));
    assert_eq!((moved.phase(), moved.may_run()), (Phase::Moved, false));
    assert_eq!(done(&mut moved, Request::Accept { id: ID, token }), Reply::Accepted);
    assert_eq!(refused(&mut moved, Request::Begin { id: OTHER }), Refusal::Moved);
    let mut released = start(Some(OriginPhase::Released { id: ID, token }));
    assert_eq!(carry_out(&mut released, None), [OriginEffect::Release]);
    assert_eq!(done(&mut released, Request::Complete { id: ID, token }), Reply::Completed);
}

#[test]
fn what_could_not_be_withdrawn_is_withdrawn_before_anything_else() {
    let mut origin = Origin::new(None, 0);
    offered(&mut origin);
    let abort = Request::Abort { id: ID };
    assert_eq!(origin.handle_request(abort), Answer::Wait);
    let withdrawn = OriginEffect::Record(OriginPhase::Withdrawn { id: ID });
    let effects = carry_out(&mut origin, Some(&withdrawn));
    assert!(effects.contains(&OriginEffect::Resume), "the application does not wait for the disk");
    assert!(origin.may_run());
    let failed = Answer::Refused(Refusal::Failed("it fails".to_owned()));
    assert_eq!(origin.handle_request(abort), failed);
    assert_eq!(origin.handle_request(Request::Begin { id: OTHER }), failed);
    origin.handle_retry();
    assert_eq!(carry_out(&mut origin, None), [withdrawn]);
    assert_eq!(done(&mut origin, abort), Reply::Aborted);
}

#[test]
fn an_application_that_cannot_be_resumed_is_said_so_and_tried_again() {
    let mut origin = Origin::new(None, 0);
    offered(&mut origin);
    origin.handle_request(Request::Abort { id: ID });
    carry_out(&mut origin, Some(&OriginEffect::Resume));
    assert_eq!((origin.phase(), origin.failure()), (Phase::NotResumed, Some("it fails")));
    assert_eq!(origin.handle_operator(false), Ok(()));
    assert_eq!(carry_out(&mut origin, None), [OriginEffect::Resume, OriginEffect::Untrack]);
    assert_eq!(origin.last_ending(), Some((ID, &Ending::Aborted)));
}
