//! The destination, one step after another. What comes of all orders of things is tried by the simulation.

use super::*;

const ID: MigrationId = MigrationId([1; 16]);
const TOKEN: Token = Token(9);

/// Carries out what is to be done until nothing is; the effect that `failing` names fails.
fn carry_out(destination: &mut Destination, failing: Option<DestinationEffect>) -> Vec<DestinationEffect> {
    let mut effects = Vec::new();
    while let Some(effect) = destination.poll_effect() {
        assert_eq!(destination.poll_effect(), None, "one thing at a time");
        destination.handle_result(if Some(effect) == failing { Err("it fails".to_owned()) } else { Ok(()) });
        effects.push(effect);
    }
    effects
}

/// What is due is asked for once, and answered.
fn answer(destination: &mut Destination, reply: Reply) -> Request {
    let request = destination.poll_request().expect("a request is due");
    assert_eq!(destination.poll_request(), None, "one request at a time");
    assert!(destination.handle_outcome(request, Outcome::Done(reply)));
    assert!(!destination.handle_outcome(request, Outcome::Done(reply)), "it counts once");
    request
}

fn refuse(destination: &mut Destination, kind: RefusalKind) -> Request {
    let request = destination.poll_request().expect("a request is due");
    destination.handle_outcome(request, Outcome::Refused { kind, reason: "no".to_owned() });
    request
}

fn copying() -> Destination {
    let mut destination = Destination::new(ID);
    let begun = DestinationEffect::Record(DestinationPhase::Begun { id: ID });
    assert_eq!(destination.poll_request(), None, "nothing is asked before the record");
    assert_eq!(carry_out(&mut destination, None), [begun]);
    assert_eq!(answer(&mut destination, Reply::Begun { generation: 4 }), Request::Begin { id: ID });
    destination
}

fn held() -> Destination {
    let mut destination = copying();
    destination.start_switch().unwrap();
    let switch = answer(&mut destination, Reply::Offered { token: TOKEN, number: 1 });
    assert_eq!(switch, Request::Switch { id: ID, generation: 4, number: 1 });
    destination
}

fn owner() -> Destination {
    let mut destination = held();
    destination.accept().unwrap();
    assert!(!destination.may_run(), "not before the record");
    let accepted = DestinationEffect::Record(DestinationPhase::Accepted { id: ID, token: TOKEN });
    assert_eq!(carry_out(&mut destination, None), [accepted, DestinationEffect::Resume]);
    assert!(destination.may_run() && destination.is_resumed());
    destination
}

const ABORTED: DestinationEffect = DestinationEffect::Record(DestinationPhase::Aborted { id: ID });

#[test]
fn from_the_beginning_to_the_end() {
    let mut destination = copying();
    assert_eq!(destination.start_round(), Ok(1));
    assert_eq!(destination.start_round(), Err(OutOfTurn(Phase::Copying)));
    answer(&mut destination, Reply::Taken { number: 1 });
    assert_eq!(destination.round(), Some(1));
    assert_eq!(destination.start_round(), Ok(2));
    // It decides to switch while it waits; whether the origin has made the round nobody knows.
    destination.start_switch().unwrap();
    let switch = answer(&mut destination, Reply::Offered { token: TOKEN, number: 2 });
    assert_eq!(switch, Request::Switch { id: ID, generation: 4, number: 2 });

    let mut destination = owner();
    assert_eq!(destination.handle_abort(Cause::Operator), Err(OutOfTurn(Phase::PostCopy)));
    destination.handle_everything_home().unwrap();
    assert_eq!(destination.phase(), Phase::PostCopy, "the origin has to know first");
    assert_eq!(answer(&mut destination, Reply::Accepted), Request::Accept { id: ID, token: TOKEN });
    let completed = DestinationEffect::Record(DestinationPhase::Completed { id: ID, token: TOKEN });
    assert_eq!(destination.poll_request(), None, "the origin keeps its bytes until the record is durable");
    assert_eq!(carry_out(&mut destination, None), [completed]);
    assert_eq!(answer(&mut destination, Reply::Completed), Request::Complete { id: ID, token: TOKEN });
    assert_eq!((destination.phase(), destination.is_finished()), (Phase::Completed, true));
}

#[test]
fn a_request_is_given_out_again_after_a_lost_connection_and_after_a_retry() {
    let mut destination = copying();
    destination.start_round().unwrap();
    let round = destination.poll_request().unwrap();
    assert_eq!(destination.awaited(), Some(round));
    destination.handle_outcome(round, Outcome::Lost);
    assert_eq!(refuse(&mut destination, RefusalKind::Later), round);
    assert_eq!((destination.poll_request(), destination.failure()), (None, Some("no")));
    destination.handle_retry();
    assert_eq!(answer(&mut destination, Reply::Taken { number: 1 }), round);
}

#[test]
fn what_the_origin_refuses_ends_it() {
    let mut destination = copying();
    destination.start_switch().unwrap();
    refuse(&mut destination, RefusalKind::Over);
    assert_eq!(destination.poll_request(), None, "not before the record");
    assert_eq!(carry_out(&mut destination, None), [ABORTED, DestinationEffect::Discard]);
    assert_eq!(answer(&mut destination, Reply::Aborted), Request::Abort { id: ID });
    assert!(destination.is_finished());
    assert_eq!(destination.cause().unwrap().to_string(), "the origin refused SWITCH: no");
}

#[test]
fn an_origin_that_has_begun_anew_is_not_believed() {
    let again = Outcome::Done(Reply::Begun { generation: 4 });
    let anew = Outcome::Done(Reply::Begun { generation: 5 });
    let mut destination = copying();
    assert!(!destination.handle_outcome(Request::Begin { id: ID }, again));
    assert_eq!(destination.phase(), Phase::Copying);
    destination.handle_outcome(Request::Begin { id: ID }, anew.clone());
    assert_eq!((destination.phase(), destination.cause()), (Phase::Aborting, Some(&Cause::Gap)));
    let mut destination = owner();
    destination.handle_outcome(Request::Begin { id: ID }, anew);
    assert_eq!(destination.phase(), Phase::PostCopy, "the offer stands whatever the origin has lost");
}

#[test]
fn a_late_offer_is_not_taken_after_giving_up() {
    let mut destination = copying();
    destination.start_switch().unwrap();
    let switch = destination.poll_request().unwrap();
    destination.handle_abort(Cause::Operator).unwrap();
    assert!(!destination.handle_outcome(switch, Outcome::Done(Reply::Offered { token: TOKEN, number: 1 })));
    assert_eq!(destination.accept(), Err(OutOfTurn(Phase::Aborting)));
    carry_out(&mut destination, None);
    assert_eq!(destination.poll_request(), Some(Request::Abort { id: ID }));
}

#[test]
fn nothing_is_said_while_nobody_knows_whether_it_has_accepted() {
    let mut destination = held();
    destination.accept().unwrap();
    assert_eq!(destination.handle_abort(Cause::Operator), Err(OutOfTurn(Phase::Accepting)));
    let accepted = destination.poll_effect().unwrap();
    assert!(matches!(accepted, DestinationEffect::Record(DestinationPhase::Accepted { .. })));
    destination.handle_result(Err("it fails".to_owned()));
    assert_eq!(destination.phase(), Phase::Aborting);
    for _ in 0..2 {
        assert_eq!(carry_out(&mut destination, Some(ABORTED)), [ABORTED]);
        assert_eq!(destination.poll_request(), None, "the record may say that it has accepted");
        destination.handle_retry();
    }
    assert_eq!(carry_out(&mut destination, None), [ABORTED, DestinationEffect::Discard]);
    assert_eq!(answer(&mut destination, Reply::Aborted), Request::Abort { id: ID });
    // Before it wanted to accept a restart would say the same with either record.
    let mut destination = copying();
    destination.handle_abort(Cause::Operator).unwrap();
    carry_out(&mut destination, Some(ABORTED));
    assert_eq!(destination.poll_request(), Some(Request::Abort { id: ID }));
}

#[test]
fn an_owner_whom_the_origin_refuses_stops_at_once() {
    let mut destination = owner();
    assert_eq!(refuse(&mut destination, RefusalKind::Later), Request::Accept { id: ID, token: TOKEN });
    assert!(destination.may_run(), "the origin may have a full disk");
    destination.handle_retry();
    refuse(&mut destination, RefusalKind::Over);
    assert!(!destination.may_run() && destination.is_ending());
    assert_eq!(carry_out(&mut destination, None), [DestinationEffect::Suspend, ABORTED]);
    assert!(!destination.is_resumed() && !destination.is_finished() && !destination.is_ending());
    assert_eq!(answer(&mut destination, Reply::Aborted), Request::Abort { id: ID });
    assert_eq!((destination.phase(), destination.is_finished()), (Phase::Ousted, true));
}

#[test]
fn a_restart_goes_on_from_the_record() {
    let mut begun = Destination::from_record(DestinationPhase::Begun { id: ID });
    assert_eq!(begun.cause(), Some(&Cause::Restarted));
    assert_eq!(carry_out(&mut begun, None), [ABORTED, DestinationEffect::Discard]);
    let mut aborted = Destination::from_record(DestinationPhase::Aborted { id: ID });
    carry_out(&mut aborted, None);
    for destination in [&mut begun, &mut aborted] {
        assert_eq!(answer(destination, Reply::Aborted), Request::Abort { id: ID });
    }
    let mut accepted = Destination::from_record(DestinationPhase::Accepted { id: ID, token: TOKEN });
    assert!(accepted.may_run() && accepted.handle_abort(Cause::Operator).is_err());
    assert_eq!(carry_out(&mut accepted, None), [DestinationEffect::Resume]);
    assert_eq!(answer(&mut accepted, Reply::Accepted), Request::Accept { id: ID, token: TOKEN });
    let mut completed = Destination::from_record(DestinationPhase::Completed { id: ID, token: TOKEN });
    assert_eq!(refuse(&mut completed, RefusalKind::Over), Request::Complete { id: ID, token: TOKEN });
    carry_out(&mut completed, None);
    assert_eq!((completed.is_finished(), completed.discord()), (true, Some("no")));
}

#[test]
fn an_application_that_cannot_be_resumed_keeps_nothing_else_from_going_on() {
    let mut destination = held();
    destination.accept().unwrap();
    carry_out(&mut destination, Some(DestinationEffect::Resume));
    assert_eq!((destination.is_resumed(), destination.failure()), (false, Some("it fails")));
    answer(&mut destination, Reply::Accepted);
    destination.handle_everything_home().unwrap();
    carry_out(&mut destination, None);
    answer(&mut destination, Reply::Completed);
    assert!(!destination.is_finished());
    destination.handle_retry();
    assert_eq!(carry_out(&mut destination, None), [DestinationEffect::Resume]);
    assert!(destination.is_finished());
}

#[test]
fn what_has_everything_at_home_says_so_durably_though_the_origin_is_gone() {
    let home = DestinationEffect::Record(DestinationPhase::Home { id: ID, token: TOKEN });
    let mut destination = held();
    destination.accept().unwrap();
    carry_out(&mut destination, None);
    assert!(!destination.has_everything());
    destination.handle_everything_home().unwrap();
    // A disk that is full keeps it from being said, and nothing else.
    assert_eq!(carry_out(&mut destination, Some(home)), [home]);
    assert!(destination.failure().is_some() && !destination.has_everything());
    destination.handle_retry();
    assert_eq!(carry_out(&mut destination, None), [home]);
    assert_eq!((destination.has_everything(), destination.phase()), (true, Phase::Completing));
    // It is told when it is there again: of the beginning first.
    for mut destination in
        [destination, Destination::from_record(DestinationPhase::Home { id: ID, token: TOKEN })]
    {
        carry_out(&mut destination, None);
        assert!(destination.may_run() && destination.has_everything() && !destination.is_finished());
        assert_eq!(answer(&mut destination, Reply::Accepted), Request::Accept { id: ID, token: TOKEN });
        let completed = DestinationEffect::Record(DestinationPhase::Completed { id: ID, token: TOKEN });
        assert_eq!(carry_out(&mut destination, None), [completed]);
        assert_eq!(answer(&mut destination, Reply::Completed), Request::Complete { id: ID, token: TOKEN });
        assert_eq!((destination.phase(), destination.is_finished()), (Phase::Completed, true));
    }
    // An origin that was taken back by force is believed all the same.
    let mut ousted = Destination::from_record(DestinationPhase::Home { id: ID, token: TOKEN });
    carry_out(&mut ousted, None);
    refuse(&mut ousted, RefusalKind::Over);
    assert_eq!(carry_out(&mut ousted, None), [DestinationEffect::Suspend, ABORTED]);
}
