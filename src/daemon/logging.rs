//! The daemon's log: the journal under systemd, readable lines on stderr otherwise.
//!
//! tracing-journald writes to a blocking socket on the caller's thread; a journald that does not
//! read would freeze the daemon. So a layer here copies each event with the spans around it into a
//! bounded queue, and the thread `journal` plays them back, with their own metadata, to
//! tracing-journald. What finds the queue full is dropped, counted, and reported once there is room.
//! Fields keep their names behind `CASEMATE_`: `journalctl CASEMATE_SESSION_ID=ses_…`.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tracing::field::{Field, ValueSet, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber, dispatcher};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as lines, reload};

use super::tasks::panic_text;
use crate::config::level::{self, InvalidLevel};

/// Events that wait for the journal: some seconds of a busy daemon, about 2 MiB.
const QUEUE_EVENTS: usize = 4096;
/// Longest value of a field; what is beyond is cut off.
const MAX_VALUE_BYTES: usize = 8 << 10;
/// Most fields of one event or span; tracing's macros allow no more either.
const MAX_FIELDS: usize = 32;

/// Where the log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// journald.
    Journal,
    /// Lines on stderr.
    Stderr,
}

/// The log, for as long as the daemon runs.
#[derive(Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    journal: Option<Journal>,
}

impl Logging {
    /// Starts the log of this process; once. Panics are logged from then on.
    ///
    /// # Errors
    /// When `level` is none, or the process has a log already.
    pub fn start(level: &str) -> anyhow::Result<Self> {
        let filter = level::parse(level).with_context(|| format!("log.level {level:?}"))?;
        let (filter, handle) = reload::Layer::new(filter);
        let registry = tracing_subscriber::registry().with(filter);
        let (journal, missing) = match under_systemd().then(Journal::connect) {
            None => (None, None),
            Some(Ok(journal)) => (Some(journal), None),
            Some(Err(error)) => (None, Some(error)),
        };
        let queue = journal.as_ref().map(|journal| JournalLayer {
            queue: Arc::clone(&journal.queue),
        });
        let stderr = journal.is_none().then(|| {
            lines::layer()
                .compact()
                .with_ansi(io::stderr().is_terminal())
                .with_writer(io::stderr)
        });
        dispatcher::set_global_default(Dispatch::new(registry.with(queue).with(stderr)))
            .context("take the process's log over")?;
        log_panics();
        if let Some(error) = missing {
            tracing::warn!(%error, "journald does not answer; the log goes to stderr");
        }
        Ok(Self {
            filter: handle,
            journal,
        })
    }

    /// Where the log goes.
    #[must_use]
    pub const fn sink(&self) -> Sink {
        match self.journal {
            Some(_) => Sink::Journal,
            None => Sink::Stderr,
        }
    }

    /// Changes what is logged.
    ///
    /// # Errors
    /// [`InvalidLevel`]; nothing is changed then.
    pub fn set_level(&self, level: &str) -> Result<(), InvalidLevel> {
        let filter = level::parse(level)?;
        // Fails only when the subscriber has gone, which a global one does not.
        self.filter.reload(filter).map_err(|_| InvalidLevel)
    }

    /// Waits until what was logged so far is in the journal, at most for the given time. Blocks the
    /// thread; for the end of the process. Whether all of it arrived.
    #[must_use]
    pub fn close(self, deadline: Duration) -> bool {
        self.journal.is_none_or(|journal| journal.close(deadline))
    }
}

/// Whether stderr is a stream of journald: systemd says which one that is in `JOURNAL_STREAM`
/// (systemd.exec(5)), and a program that was started with another stderr still inherits that.
fn under_systemd() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else {
        return false;
    };
    File::from(stderr)
        .metadata()
        .is_ok_and(|found| names(&stream, found.dev(), found.ino()))
}

/// Whether `stream` is `device:inode` of this file.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(first, second)| first.parse() == Ok(device) && second.parse() == Ok(inode))
}

/// Logs panics instead of printing them.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let said = panic_text(panic.payload());
        let place = panic.location().map(ToString::to_string);
        let current = std::thread::current();
        tracing::error!(
            place = place.unwrap_or_default(),
            thread = current.name().unwrap_or("unnamed"),
            "panic: {said}"
        );
    }));
}

/// Fields with their values as text: the journal knows no other kind.
type Fields = Vec<(Field, String)>;

/// A span around an event.
struct SpanCopy {
    metadata: &'static Metadata<'static>,
    fields: Fields,
}

/// An event with the spans around it, outermost first.
struct EventCopy {
    metadata: &'static Metadata<'static>,
    fields: Fields,
    spans: Vec<Arc<SpanCopy>>,
}

/// Copies fields.
struct Copier<'a>(&'a mut Fields);

impl Copier<'_> {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut clip = Clip(String::new());
        // An error says that the rest was cut off.
        let _ = clip.write_fmt(value);
        if let Some((_, text)) = self.0.iter_mut().find(|(known, _)| known == field) {
            *text = clip.0;
        } else if self.0.len() < MAX_FIELDS {
            self.0.push((field.clone(), clip.0));
        }
    }
}

impl Visit for Copier<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

/// Takes [`MAX_VALUE_BYTES`] and then fails, so that nothing longer is ever held.
struct Clip(String);

impl fmt::Write for Clip {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_VALUE_BYTES.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let fitting = text
            .char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .take_while(|end| *end <= room)
            .last()
            .unwrap_or(0);
        self.0.push_str(text.get(..fitting).unwrap_or_default());
        Err(fmt::Error)
    }
}

/// Copies events into the queue; never waits.
struct JournalLayer {
    queue: Arc<Queue>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JournalLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::new();
        attributes.record(&mut Copier(&mut fields));
        span.extensions_mut().insert(Arc::new(SpanCopy {
            metadata: span.metadata(),
            fields,
        }));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(copy) = extensions.get_mut::<Arc<SpanCopy>>() else {
            return;
        };
        // Events in the queue keep the span as it was.
        let mut fields = copy.fields.clone();
        values.record(&mut Copier(&mut fields));
        *copy = Arc::new(SpanCopy {
            metadata: copy.metadata,
            fields,
        });
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Copier(&mut fields));
        let spans = context
            .event_scope(event)
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root)
            .filter_map(|span| span.extensions().get::<Arc<SpanCopy>>().cloned())
            .collect();
        self.queue.push(EventCopy {
            metadata: event.metadata(),
            fields,
            spans,
        });
    }
}

/// Events on their way to the journal.
struct Queue {
    state: Mutex<State>,
    /// There is work, or the end.
    work: Condvar,
    /// Something was written.
    progress: Condvar,
    bound: usize,
}

#[derive(Default)]
struct State {
    events: VecDeque<EventCopy>,
    accepted: u64,
    written: u64,
    /// Since the last report.
    dropped: u64,
    is_closed: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    fn new(bound: usize) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            bound,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: EventCopy) {
        let mut state = self.state();
        if state.is_closed || state.events.len() >= self.bound {
            state.dropped += 1;
            return;
        }
        state.events.push_back(event);
        state.accepted += 1;
        drop(state);
        self.work.notify_one();
    }

    /// The next event and how many were dropped before it was taken; `None` at the end. Waits.
    fn take(&self) -> Option<(EventCopy, u64)> {
        let mut state = self.state();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Some((event, std::mem::take(&mut state.dropped)));
            }
            if state.is_closed {
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wrote_one(&self) {
        self.state().written += 1;
        self.progress.notify_all();
    }

    /// Waits until all that was accepted so far is written. Whether it was.
    fn flush(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut state = self.state();
        let wanted = state.accepted;
        while state.written < wanted {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .progress
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

/// The queue and the thread at its end.
#[derive(Debug)]
struct Journal {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    fn connect() -> io::Result<Self> {
        let journald = tracing_journald::layer()?
            .with_syslog_identifier("casemated".to_owned())
            .with_field_prefix(Some("CASEMATE".to_owned()))
            .with_priority_mappings(PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            });
        let far_end = tracing_subscriber::registry().with(Mute).with(journald);
        Self::start(Dispatch::new(far_end), QUEUE_EVENTS)
    }

    fn start(far_end: Dispatch, bound: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(bound));
        let taking = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                while let Some((event, dropped)) = taking.take() {
                    if dropped > 0 {
                        report(&far_end, dropped);
                    }
                    play_back(&far_end, &event);
                    taking.wrote_one();
                }
                let dropped = taking.state().dropped;
                if dropped > 0 {
                    report(&far_end, dropped);
                }
            })?;
        Ok(Self {
            queue,
            thread: Some(thread),
        })
    }

    fn close(mut self, deadline: Duration) -> bool {
        let is_written = self.queue.flush(deadline);
        self.queue.state().is_closed = true;
        self.queue.work.notify_all();
        // A thread that hangs in journald's socket is not waited for.
        if let Some(thread) = self.thread.take().filter(|_| is_written) {
            let _ = thread.join();
        }
        is_written
    }
}

/// Says that nothing is wanted, so that the journal's end does not raise the level at which
/// tracing's macros do work. Played back events do not ask.
struct Mute;

impl<S: Subscriber> Layer<S> for Mute {
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }
}

fn report(far_end: &Dispatch, dropped: u64) {
    dispatcher::with_default(far_end, || {
        tracing::warn!(
            dropped,
            "the journal was too slow: {dropped} events are missing here"
        );
    });
}

/// Gives a copied event to a subscriber as if it happened now.
fn play_back(far_end: &Dispatch, event: &EventCopy) {
    let spans: Vec<Id> = event
        .spans
        .iter()
        .map(|span| {
            let id = with_values(span.metadata, &span.fields, |values| {
                far_end.new_span(&Attributes::new(span.metadata, values))
            });
            far_end.enter(&id);
            id
        })
        .collect();
    with_values(event.metadata, &event.fields, |values| {
        far_end.event(&Event::new(event.metadata, values));
    });
    for id in spans.into_iter().rev() {
        far_end.exit(&id);
        far_end.try_close(id);
    }
}

/// Makes copied fields into what tracing takes.
fn with_values<T>(
    metadata: &'static Metadata<'static>,
    fields: &Fields,
    then: impl FnOnce(&ValueSet<'_>) -> T,
) -> T {
    let texts: Vec<&str> = fields.iter().map(|(_, text)| text.as_str()).collect();
    let Some((any, _)) = fields.first() else {
        let none: [(&Field, Option<&dyn tracing::Value>); 0] = [];
        return then(&metadata.fields().value_set(&none));
    };
    let values: [(&Field, Option<&dyn tracing::Value>); MAX_FIELDS] = std::array::from_fn(|n| {
        match (fields.get(n), texts.get(n)) {
            (Some((field, _)), Some(text)) => (field, Some(text as &dyn tracing::Value)),
            // A field without a value is not recorded.
            _ => (any, None),
        }
    });
    then(&metadata.fields().value_set(&values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::child;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(60);

    /// The far end of a test: tells what arrives as text, and waits before each event if asked to.
    struct Told {
        to: mpsc::Sender<String>,
        gate: Option<Mutex<mpsc::Receiver<()>>>,
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Told {
        fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            let mut fields = Fields::new();
            attributes.record(&mut Copier(&mut fields));
            let span = context.span(id).unwrap();
            span.extensions_mut().insert(fields);
        }

        fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
            if let Some(gate) = &self.gate {
                let _ = gate.lock().unwrap().recv();
            }
            let mut text = event.metadata().level().to_string();
            for span in context.event_scope(event).into_iter().flatten() {
                let extensions = span.extensions();
                let fields = show(extensions.get().unwrap());
                write!(text, " in {}{fields}", span.name()).unwrap();
            }
            let mut fields = Fields::new();
            event.record(&mut Copier(&mut fields));
            self.to.send(text + &show(&fields)).unwrap();
        }
    }

    fn show(fields: &Fields) -> String {
        let show = |(field, text): &(Field, String)| format!(" {}={text}", field.name());
        fields.iter().map(show).collect()
    }

    /// A journal that tells, and a log that writes to it.
    fn journal(
        gate: Option<mpsc::Receiver<()>>,
        bound: usize,
    ) -> (Journal, Dispatch, mpsc::Receiver<String>) {
        let (to, told) = mpsc::channel();
        let far_end = Told {
            to,
            gate: gate.map(Mutex::new),
        };
        let far_end = tracing_subscriber::registry().with(Mute).with(far_end);
        let journal = Journal::start(Dispatch::new(far_end), bound).unwrap();
        let layer = JournalLayer {
            queue: Arc::clone(&journal.queue),
        };
        let log = Dispatch::new(tracing_subscriber::registry().with(layer));
        (journal, log, told)
    }

    #[test]
    fn events_arrive_with_their_fields_and_spans() {
        let (journal, log, told) = journal(None, 16);
        dispatcher::with_default(&log, || {
            tracing::info!("alone");
            let outer = tracing::info_span!(
                "session",
                session.id = "ses_1",
                phase = tracing::field::Empty
            );
            outer.in_scope(|| {
                tracing::warn!(error = ?"a\nb", count = 3, "before");
                outer.record("phase", "ready");
                tracing::debug_span!("run", pid = 7).in_scope(|| tracing::error!(yes = true));
            });
            outer.record("phase", "stopped");
            outer.in_scope(|| tracing::info!("after"));
        });
        assert!(journal.close(LONG));
        let told: Vec<String> = told.iter().collect();
        assert_eq!(
            told,
            [
                "INFO message=alone",
                "WARN in session session.id=ses_1 message=before error=\"a\\nb\" count=3",
                "ERROR in run pid=7 in session session.id=ses_1 phase=ready yes=true",
                "INFO in session session.id=ses_1 phase=stopped message=after",
            ]
        );
    }

    #[test]
    fn a_journal_that_does_not_read_stops_nobody_and_the_loss_is_told() {
        let (open, gate) = mpsc::channel();
        let (journal, log, told) = journal(Some(gate), 2);
        dispatcher::with_default(&log, || {
            for n in 0..100 {
                tracing::info!(n);
            }
        });
        assert!(!journal.queue.flush(Duration::ZERO));
        drop(open);
        assert!(journal.queue.flush(LONG));
        dispatcher::with_default(&log, || tracing::info!("room again"));
        assert!(journal.close(LONG));
        let told: Vec<String> = told.iter().collect();
        let arrived = told
            .iter()
            .filter(|line| line.starts_with("INFO n="))
            .count();
        let missing: usize = told
            .iter()
            .filter_map(|line| {
                line.split_once("dropped=")?
                    .1
                    .split(' ')
                    .next()?
                    .parse::<usize>()
                    .ok()
            })
            .sum();
        assert_eq!(arrived + missing, 100, "{told:?}");
        assert_eq!(told.last().unwrap(), "INFO message=room again");
    }

    #[test]
    fn a_journal_that_hangs_does_not_hold_the_end_up() {
        let (open, gate) = mpsc::channel();
        let (journal, log, _told) = journal(Some(gate), 16);
        dispatcher::with_default(&log, || tracing::info!("stuck"));
        assert!(!journal.close(Duration::from_millis(1)));
        drop(open);
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let mut clip = Clip(String::new());
        assert!(write!(clip, "a{}", "é".repeat(MAX_VALUE_BYTES)).is_err());
        assert_eq!(clip.0.len(), MAX_VALUE_BYTES - 1);
        assert!(clip.0.ends_with('é'));
    }

    #[test]
    fn only_the_stream_that_systemd_named_is_the_journal() {
        assert!(names("9:1234", 9, 1234));
        for stream in [
            "", "9", "9:", ":1234", "9:1235", "8:1234", "9:1234:5", "x:y",
        ] {
            assert!(!names(stream, 9, 1234), "{stream}");
        }
    }

    #[test]
    fn lines_go_to_stderr_with_their_time_and_the_level_can_be_changed() {
        let name = "daemon::logging::tests::lines_go_to_stderr_with_their_time_and_the_level_can_be_changed";
        if child::is_child() {
            // Not the journal: this names another stream.
            let logging = Logging::start("info").unwrap();
            assert_eq!(logging.sink(), Sink::Stderr);
            assert!(Logging::start("info").is_err());
            tracing::debug!("too quiet");
            logging.set_level("debug").unwrap();
            assert!(logging.set_level("inof").is_err());
            tracing::debug!(session.id = "ses_1", "loud enough");
            let _ = std::thread::spawn(|| panic!("planted")).join();
            assert!(logging.close(LONG));
            return;
        }
        let mut command = child::command(name, &[("JOURNAL_STREAM", "1:1")]);
        let output = command
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        assert!(output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("too quiet"), "{said}");
        let line = said
            .lines()
            .find(|line| line.contains("loud enough"))
            .unwrap();
        assert!(
            line.contains("session.id=\"ses_1\"") && line.contains("DEBUG"),
            "{line}"
        );
        // 2026-11-22T13:00:00.000000Z
        let time = line.split(' ').next().unwrap();
        assert!(
            time.parse::<jiff::Timestamp>().is_ok() && time.ends_with('Z'),
            "{line}"
        );
        assert!(
            said.contains("panic: planted") && said.contains("logging.rs"),
            "{said}"
        );
    }
}
