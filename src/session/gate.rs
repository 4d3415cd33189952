//! Who may go on, and who waits: places for sessions and for launches, fairly among teams.
//!
//! There are so many places for all and so many for each team. Past that a request waits in a bounded queue; teams take turns,
//! whoever came first within a team goes first, and one that waits too long is told so. A [`Place`] is given back when it is
//! dropped, by whichever way its holder ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::model::name::Name;

/// How often a machine that was short of something is looked at again while requests wait.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Places for all teams together.
    pub places: usize,
    /// Places for one team.
    pub team: usize,
    /// Requests that wait at one time.
    pub queue: usize,
}

/// Why somebody does not get a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// All places are taken, and nobody gave one back in time.
    Full,
    /// The team has all the places that it may have.
    TeamFull,
    /// The machine is short of memory.
    Machine,
    /// So many wait already.
    Queue,
}

/// Says whether the machine can carry one more.
type Room = Box<dyn Fn() -> bool + Send + Sync>;

/// Gives out places. Clones share them.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    room: Room,
}

/// A place, for as long as it is held.
pub struct Place {
    gate: Gate,
    team: Name,
}

#[derive(Default)]
struct State {
    budget: Option<Budget>,
    taken: usize,
    /// Places taken, by team; no entry for a team without.
    teams: BTreeMap<Name, usize>,
    /// Who waits, by team, in the order in which the teams' turns come.
    waiting: VecDeque<(Name, VecDeque<Waiter>)>,
    next: u64,
}

struct Waiter {
    number: u64,
    wake: oneshot::Sender<Place>,
}

impl State {
    /// Why a team cannot have a place now.
    fn obstacle(&self, team: &Name) -> Option<Refused> {
        let budget = self.budget?;
        let of_team = self.teams.get(team).copied().unwrap_or(0);
        if self.taken >= budget.places {
            Some(Refused::Full)
        } else if of_team >= budget.team {
            Some(Refused::TeamFull)
        } else {
            None
        }
    }

    fn take(&mut self, team: &Name) {
        self.taken += 1;
        *self.teams.entry(team.clone()).or_default() += 1;
    }

    fn give_back(&mut self, team: &Name) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(of_team) = self.teams.get_mut(team) {
            *of_team = of_team.saturating_sub(1);
            if *of_team == 0 {
                self.teams.remove(team);
            }
        }
    }

    fn waiters(&self) -> usize {
        self.waiting.iter().map(|(_, queue)| queue.len()).sum()
    }

    fn wait(&mut self, team: &Name, wake: oneshot::Sender<Place>) -> u64 {
        self.next += 1;
        let waiter = Waiter {
            number: self.next,
            wake,
        };
        match self.waiting.iter_mut().find(|(name, _)| name == team) {
            Some((_, queue)) => queue.push_back(waiter),
            None => self.waiting.push_back((team.clone(), [waiter].into())),
        }
        self.next
    }

    fn forget(&mut self, number: u64) {
        for (_, queue) in &mut self.waiting {
            queue.retain(|waiter| waiter.number != number);
        }
        self.waiting.retain(|(_, queue)| !queue.is_empty());
    }

    /// Takes a place for the team whose turn it is, of those that may have one; its turn comes again after all others'.
    fn admit_next(&mut self) -> Option<(Name, Waiter)> {
        let may = |(team, _): &(Name, _)| self.obstacle(team).is_none();
        let at = self.waiting.iter().position(may)?;
        let (team, mut queue) = self.waiting.remove(at)?;
        let waiter = queue.pop_front()?;
        if !queue.is_empty() {
            self.waiting.push_back((team.clone(), queue));
        }
        self.take(&team);
        Some((team, waiter))
    }
}

impl Gate {
    /// Nobody has a place yet. `room` says whether the machine can carry one more.
    pub fn new(budget: Budget, room: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let state = State {
            budget: Some(budget),
            ..State::default()
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            room: Box::new(room),
        }))
    }

    /// Gives out more or less from now on. Who has a place keeps it.
    pub fn set(&self, budget: Budget) {
        self.state().budget = Some(budget);
        self.let_in();
    }

    /// Takes a place, whatever the budget: for what is there already.
    pub fn occupy(&self, team: &Name) -> Place {
        self.state().take(team);
        self.place(team.clone())
    }

    /// Takes a place, or waits for one, but no longer than `patience`.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn enter(&self, team: &Name, patience: Duration) -> Result<Place, Refused> {
        let (wake, mut woken) = oneshot::channel();
        let number = {
            let mut state = self.state();
            let obstacle = state.obstacle(team);
            let has_room = state.waiting.is_empty() && obstacle.is_none() && (self.0.room)();
            if has_room {
                state.take(team);
                drop(state);
                return Ok(self.place(team.clone()));
            }
            if state
                .budget
                .is_some_and(|budget| state.waiters() >= budget.queue)
            {
                return Err(obstacle.unwrap_or(Refused::Queue));
            }
            state.wait(team, wake)
        };
        let waiting = Waiting { gate: self, number };
        // Absent: it is so late that nobody lives to see it.
        let deadline = Instant::now().checked_add(patience);
        loop {
            self.let_in();
            let soon = Instant::now() + LOOK_AGAIN;
            let again = deadline.map_or(soon, |deadline| deadline.min(soon));
            tokio::select! {
                biased;
                Ok(place) = &mut woken => return Ok(place),
                () = sleep_until(again) => {}
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                drop(waiting);
                // It may have come in this moment.
                if let Ok(place) = woken.try_recv() {
                    return Ok(place);
                }
                let obstacle = self.state().obstacle(team);
                return Err(obstacle.unwrap_or(Refused::Machine));
            }
        }
    }

    /// How many places are taken, and how many wait for one.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.taken, state.waiters())
    }

    /// Lets those in whose turn it is, for as long as there is room.
    fn let_in(&self) {
        loop {
            let mut state = self.state();
            if state.waiting.is_empty() || !(self.0.room)() {
                return;
            }
            let Some((team, waiter)) = state.admit_next() else {
                return;
            };
            drop(state);
            // Whoever does not wait any more gives it back at once, and the next one has it.
            let _ = waiter.wake.send(self.place(team));
        }
    }

    fn place(&self, team: Name) -> Place {
        Place {
            gate: self.clone(),
            team,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.state().give_back(&self.team);
        self.gate.let_in();
    }
}

/// Somebody in the queue; dropped, nobody any more.
struct Waiting<'a> {
    gate: &'a Gate,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.state().forget(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::future::join_all;
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn team(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn gate(places: usize, team: usize, queue: usize) -> Gate {
        let budget = Budget {
            places,
            team,
            queue,
        };
        Gate::new(budget, || true)
    }

    async fn refused(gate: &Gate, name: &str) -> Option<Refused> {
        gate.enter(&team(name), Duration::ZERO).await.err()
    }

    #[tokio::test(start_paused = true)]
    async fn each_bound_is_told_by_its_name() {
        let gate = gate(3, 2, 2);
        let mut held = vec![
            gate.enter(&team("a"), PATIENCE)
                .await
                .unwrap_or_else(|_| panic!()),
            gate.enter(&team("a"), PATIENCE)
                .await
                .unwrap_or_else(|_| panic!()),
        ];
        assert_eq!(refused(&gate, "a").await, Some(Refused::TeamFull));
        held.extend(gate.enter(&team("b"), PATIENCE).await);
        assert_eq!(refused(&gate, "b").await, Some(Refused::Full));
        assert_eq!(gate.load(), (3, 0));
        let name = team("b");
        let crowd = join_all((0..5).map(|_| gate.enter(&name, PATIENCE))).await;
        let outcomes: Vec<_> = crowd.into_iter().map(Result::err).collect();
        assert_eq!(outcomes, [Some(Refused::Full); 5]);
        drop(held);
        assert_eq!(gate.load(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_next_place_and_who_left_does_not() {
        let gate = gate(1, 1, 10);
        let held = gate.enter(&team("a"), PATIENCE).await;
        let left = gate.clone();
        let gone = tokio::spawn(async move { left.enter(&team("a"), PATIENCE).await.is_ok() });
        let stays = gate.clone();
        let stays = tokio::spawn(async move { stays.enter(&team("b"), PATIENCE).await });
        while gate.load().1 < 2 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.is_err());
        drop(held);
        let place = stays.await.unwrap();
        assert!(place.is_ok());
        assert_eq!(gate.load(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_team_that_asks_for_much_does_not_keep_another_waiting() {
        let gate = gate(1, 1, 1000);
        let held = gate.enter(&team("greedy"), PATIENCE).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in ["greedy"; 100].into_iter().chain(["modest"]) {
            let (gate, order) = (gate.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let place = gate.enter(&team(name), PATIENCE).await;
                order.lock().unwrap().push(name);
                drop(place);
            }));
            tokio::task::yield_now().await;
        }
        while gate.load().1 < 101 {
            tokio::task::yield_now().await;
        }
        drop(held);
        join_all(tasks).await;
        let order = order.lock().unwrap();
        assert_eq!(order.len(), 101);
        let at = order.iter().position(|name| *name == "modest").unwrap();
        assert!(at <= 2, "the modest team was {at}th");
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_without_room_keeps_them_waiting_until_it_has() {
        let room = Arc::new(AtomicBool::new(false));
        let has_room = Arc::clone(&room);
        let budget = Budget {
            places: 10,
            team: 10,
            queue: 10,
        };
        let gate = Gate::new(budget, move || has_room.load(Ordering::SeqCst));
        assert_eq!(refused(&gate, "a").await, Some(Refused::Machine));
        let waits = gate.clone();
        let waits = tokio::spawn(async move { waits.enter(&team("a"), PATIENCE).await.is_ok() });
        while gate.load().1 < 1 {
            tokio::task::yield_now().await;
        }
        room.store(true, Ordering::SeqCst);
        assert!(waits.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn another_budget_holds_from_then_on() {
        let gate = gate(1, 1, 10);
        let held = gate.occupy(&team("a"));
        let _more_than_allowed = gate.occupy(&team("a"));
        assert_eq!(refused(&gate, "b").await, Some(Refused::Full));
        gate.set(Budget {
            places: 3,
            team: 1,
            queue: 10,
        });
        assert_eq!(refused(&gate, "a").await, Some(Refused::TeamFull));
        assert_eq!(refused(&gate, "b").await, None);
        drop(held);
    }

    proptest! {
        #[test]
        fn no_bound_is_ever_passed_and_every_place_comes_back(
            steps in proptest::collection::vec((0..4_usize, any::<bool>()), 1..200),
            places in 1..6_usize,
            of_team in 1..4_usize,
        ) {
            let names: Vec<_> = ["a", "b", "c", "d"].map(team).into();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let gate = gate(places, of_team, 3);
                let mut held: Vec<(usize, Place)> = Vec::new();
                for (at, enters) in steps {
                    if enters {
                        if let Ok(place) = gate.enter(&names[at], Duration::ZERO).await {
                            held.push((at, place));
                        }
                    } else if let Some(found) = held.iter().position(|(of, _)| *of == at) {
                        held.swap_remove(found);
                    }
                    assert_eq!(gate.load(), (held.len(), 0));
                    assert!(held.len() <= places);
                    for name in 0..4 {
                        assert!(held.iter().filter(|(of, _)| *of == name).count() <= of_team);
                    }
                }
                drop(held);
                assert_eq!(gate.load(), (0, 0));
            });
        }
    }
}
