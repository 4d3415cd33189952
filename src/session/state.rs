//! What may happen to a session: pure, without effects, time or I/O.
//!
//! The diagram is on the folder's page. Three rules carry the rest: *ending wins* (it is possible in
//! every phase that is not final, and its first reason stays), *already so is success*, and *the
//! generation grows by one with each change*.

use crate::model::session::{Phase, Reason, Status};

/// Something that happened to a session, or is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its turn to be launched has come.
    Begin,
    /// Its guest answers.
    Linked,
    /// It has a sandbox that stood ready, whose guest answers.
    Claimed,
    /// It shall end, or its sandbox has ended.
    End {
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        message: Option<String>,
    },
    /// Its sandbox shall stand still.
    Pause {
        /// Who or what wished it.
        reason: Reason,
    },
    /// Its sandbox goes on.
    Resume,
    /// Nothing of its sandbox is left.
    TornDown,
}

/// What an event changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The session's new status.
    Changed(Status),
    /// The event asks for what is the case.
    AlreadySo,
    /// The event cannot happen in this phase.
    Denied {
        /// The phase it is in.
        phase: Phase,
    },
}

/// The status of a session that was just admitted.
#[must_use]
pub const fn admitted() -> Status {
    Status {
        phase: Phase::Pending,
        reason: None,
        message: None,
        generation: 1,
    }
}

/// Decides what `event` makes of `status`.
#[must_use]
pub fn apply(status: &Status, event: Event) -> Answer {
    let to = |phase, reason, message| {
        Answer::Changed(Status {
            phase,
            reason,
            message,
            generation: status.generation.saturating_add(1),
        })
    };
    match (status.phase, event) {
        (Phase::Pending, Event::Begin) => to(Phase::Starting, None, None),
        (Phase::Starting, Event::Linked)
        | (Phase::Pending, Event::Claimed)
        | (Phase::Paused, Event::Resume) => to(Phase::Ready, None, None),
        (Phase::Ready, Event::Pause { reason }) => to(Phase::Paused, Some(reason), None),
        (
            Phase::Pending | Phase::Starting | Phase::Ready | Phase::Paused,
            Event::End { reason, message },
        ) => to(Phase::Stopping, Some(reason), message),
        (Phase::Starting, Event::Begin)
        | (Phase::Ready, Event::Linked | Event::Claimed | Event::Resume)
        | (Phase::Paused, Event::Pause { .. })
        | (Phase::Stopping | Phase::Stopped | Phase::Failed, Event::End { .. })
        | (Phase::Stopped | Phase::Failed, Event::TornDown) => Answer::AlreadySo,
        (Phase::Stopping, Event::TornDown) => {
            let phase = status.reason.map_or(Phase::Failed, end_of);
            to(phase, status.reason, status.message.clone())
        }
        (
            phase,
            Event::Begin
            | Event::Linked
            | Event::Claimed
            | Event::Pause { .. }
            | Event::Resume
            | Event::TornDown,
        ) => Answer::Denied { phase },
    }
}

/// The final phase of a session that ended for this reason: stopped if somebody wished it.
const fn end_of(reason: Reason) -> Phase {
    if reason.is_wished() {
        Phase::Stopped
    } else {
        Phase::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Begin),
            Just(Event::Linked),
            Just(Event::Claimed),
            Just(Event::TornDown),
            Just(Event::Resume),
            proptest::sample::select(&Reason::ALL[..]).prop_map(|reason| Event::Pause { reason }),
            proptest::sample::select(&Reason::ALL[..]).prop_map(|reason| Event::End {
                reason,
                message: Some(reason.as_str().to_owned()),
            }),
        ]
    }

    /// The drawn arrows, by hand: the one place that says which phase may follow which.
    const ARROWS: [(Phase, Phase); 11] = [
        (Phase::Pending, Phase::Starting),
        (Phase::Pending, Phase::Ready),
        (Phase::Pending, Phase::Stopping),
        (Phase::Starting, Phase::Ready),
        (Phase::Starting, Phase::Stopping),
        (Phase::Ready, Phase::Paused),
        (Phase::Ready, Phase::Stopping),
        (Phase::Paused, Phase::Ready),
        (Phase::Paused, Phase::Stopping),
        (Phase::Stopping, Phase::Stopped),
        (Phase::Stopping, Phase::Failed),
    ];

    proptest! {
        #[test]
        fn only_drawn_arrows_are_taken_and_the_generation_grows(
            events in proptest::collection::vec(events(), 0..40)
        ) {
            let mut status = admitted();
            for event in events {
                match apply(&status, event) {
                    Answer::Changed(next) => {
                        prop_assert!(ARROWS.contains(&(status.phase, next.phase)));
                        prop_assert_eq!(next.generation, status.generation + 1);
                        status = next;
                    }
                    Answer::AlreadySo => {}
                    Answer::Denied { phase } => prop_assert_eq!(phase, status.phase),
                }
            }
        }

        #[test]
        fn ending_always_wins_and_its_first_reason_stays(
            before in proptest::collection::vec(events(), 0..10),
            after in proptest::collection::vec(events(), 0..10),
        ) {
            let run = |status: Status, events: Vec<Event>| {
                events.into_iter().fold(status, |status, event| match apply(&status, event) {
                    Answer::Changed(next) => next,
                    _ => status,
                })
            };
            let status = run(admitted(), before);
            let end = Event::End { reason: Reason::Client, message: None };
            let ended = match apply(&status, end) {
                Answer::Changed(next) => next,
                Answer::AlreadySo => status,
                Answer::Denied { .. } => return Err(TestCaseError::fail("an end was denied")),
            };
            let reason = ended.reason;
            prop_assert!(reason.is_some());
            let last = run(ended, after.into_iter().chain([Event::TornDown]).collect());
            prop_assert!(last.phase.is_final());
            prop_assert_eq!(last.reason, reason);
        }
    }

    #[test]
    fn pausing_and_waking_are_told_from_what_is_so_already() {
        let ready = Status {
            phase: Phase::Ready,
            ..admitted()
        };
        let pause = || Event::Pause {
            reason: Reason::Idle,
        };
        let Answer::Changed(paused) = apply(&ready, pause()) else {
            panic!("a ready session is not paused");
        };
        assert_eq!(
            (paused.phase, paused.reason),
            (Phase::Paused, Some(Reason::Idle))
        );
        assert_eq!(apply(&paused, pause()), Answer::AlreadySo);
        let Answer::Changed(woken) = apply(&paused, Event::Resume) else {
            panic!("a paused session is not woken");
        };
        assert_eq!((woken.phase, woken.reason), (Phase::Ready, None));
        assert_eq!(apply(&woken, Event::Resume), Answer::AlreadySo);
        let phase = Phase::Starting;
        let starting = Status {
            phase,
            ..admitted()
        };
        assert_eq!(apply(&starting, pause()), Answer::Denied { phase });
    }

    #[test]
    fn what_nobody_wished_is_a_failure() {
        for reason in Reason::ALL {
            let stopping = Status {
                phase: Phase::Stopping,
                reason: Some(reason),
                message: None,
                generation: 4,
            };
            let Answer::Changed(last) = apply(&stopping, Event::TornDown) else {
                panic!("{reason:?}");
            };
            let wished = matches!(
                reason,
                Reason::Client | Reason::Operator | Reason::Deadline | Reason::Idle
            );
            assert_eq!(last.phase == Phase::Stopped, wished, "{reason:?}");
        }
    }
}
