//! The log of a process, and what of it a user must know.
//!
//! Libraries tell what is no error with `tracing`. It has two readers:
//!
//! * **Notes.** A warning of one of our own crates is something that a user must know (data are read from an old copy, a
//!   group is slower than it could be). It becomes a line of the run, whatever `RUST_LOG` says: a worker sends it to its
//!   controller, any other process prints it. What one rank has said, the others need not repeat.
//! * **The log.** What `RUST_LOG` asks for (`warn` unless it is set; `debug`, `tandem_comm=trace,warn`, ...) goes to standard
//!   error, with time, level and place: for a worker with a controller that is its log file, and every line has the rank.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io;
use std::str::FromStr;

use parking_lot::Mutex;
use tandem_launch::client::EventSender;
use tandem_launch::protocol::{Level, WorkerEvent};
use tandem_launch::tell;
use tracing::field::{Field, Visit};
use tracing::{Event, Level as Importance, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::environment::Environment;
use crate::role::Role;
use crate::show::screen;

/// The variable that says what is logged.
pub const FILTER: &str = "RUST_LOG";

/// Starts the log of this process. A second call changes nothing.
pub fn start(environment: &Environment, role: &Role) {
    let (rank, notes) = match role {
        Role::Controller => (None, Notes::Lines),
        Role::Worker { env, control } => {
            let notes = match control.sender() {
                Some(sender) => Notes::Controller(sender),
                None if env.rank == 0 => Notes::Lines,
                // The first rank speaks for all; what only this one has to say is in its log.
                None => Notes::Nowhere,
            };
            (Some(env.rank), notes)
        }
    };
    let asked = environment.get(FILTER);
    let (filter, problem) = filter(asked.as_deref());
    if let Some(problem) = problem {
        tell!("warning: {problem}");
    }
    let subscriber = subscriber(filter, notes, move || LogLine(rank));
    // Only a test has one already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// What is logged, and why that is not what was asked for.
fn filter(asked: Option<&str>) -> (Targets, Option<String>) {
    let default = Targets::new().with_default(LevelFilter::WARN);
    match asked.map(Targets::from_str) {
        None => (default, None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => {
            let asked = asked.unwrap_or_default();
            let problem = format!(
                "{FILTER} is {asked:?}, which is no filter ({error}); such as {FILTER}=debug or \
                 {FILTER}=tandem_comm=trace,warn; warnings are logged"
            );
            (default, Some(problem))
        }
    }
}

fn subscriber<W: io::Write>(
    filter: Targets,
    notes: Notes,
    writer: impl Fn() -> W + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync {
    // A line that is on this terminal already is not written there a second time.
    let is_shown = matches!(notes, Notes::Lines);
    let not_shown = filter_fn(move |metadata| !(is_shown && is_note(metadata)));
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(writer)
        .with_filter(filter.and(not_shown));
    tracing_subscriber::registry()
        .with(log)
        .with(notes.with_filter(filter_fn(is_note)))
}

/// Whether a user must know it.
fn is_note(metadata: &Metadata<'_>) -> bool {
    // ERROR is less than WARN: the scale is of how much is said.
    metadata.is_event()
        && metadata.target().starts_with("tandem_")
        && *metadata.level() <= Importance::WARN
}

/// Where notes go.
enum Notes {
    /// To this process's screen.
    Lines,
    /// To the controller.
    Controller(EventSender),
    Nowhere,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Notes {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let text = words.whole();
        match self {
            Self::Nowhere => {}
            Self::Controller(sender) => sender.send(&WorkerEvent::Message {
                level: Level::Warning,
                text,
            }),
            Self::Lines => {
                if is_news(&text, None) {
                    // There is nobody to tell.
                    let _ = screen::line(&format!("warning: {text}"));
                }
            }
        }
    }
}

/// Whether nobody else has said this before: `rank`, or the process itself. Whoever said it first may say it again.
pub fn is_news(text: &str, rank: Option<usize>) -> bool {
    static FIRST: Mutex<Option<HashMap<String, Option<usize>>>> = Mutex::new(None);
    let mut first = FIRST.lock();
    let first = first.get_or_insert_default();
    if first.len() >= MAX_REMEMBERED {
        first.clear();
    }
    *first.entry(text.to_owned()).or_insert(rank) == rank
}

/// Notes that are remembered; nobody reads more.
const MAX_REMEMBERED: usize = 1000;

/// An event in words: its message, then what else it knows.
#[derive(Default)]
struct Words {
    message: String,
    rest: Vec<String>,
}

impl Words {
    fn whole(self) -> String {
        let Self { message, rest } = self;
        match rest.as_slice() {
            [] => message,
            rest if message.is_empty() => rest.join(", "),
            rest => format!("{message} ({})", rest.join(", ")),
        }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => {
                // Writing to a string does not fail.
                let _ = write!(self.message, "{value:?}");
            }
            // What these are is plain.
            "error" | "reason" => self.rest.push(format!("{value:?}")),
            name => self.rest.push(format!("{name} {value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Without quotes.
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Takes one line of the log at a time.
struct LogLine(Option<usize>);

impl io::Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches('\n');
        // What cannot be written is dropped, as all that nobody takes; the subscriber would panic over an error.
        let _ = match self.0 {
            Some(rank) => screen::line(&format!("rank {rank}: {text}")),
            None => screen::line(text),
        };
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged of a few events.
    fn logged(asked: Option<&str>, notes: Notes) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = subscriber(filter(asked).0, notes, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "tandem_data::x", "a note");
            tracing::info!(target: "tandem_data::x", "good to know");
            tracing::warn!(target: "others", "a warning of others");
            tracing::debug!(target: "tandem_comm::x", member = 3, "a detail");
        });
        let bytes = kept.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_filter_is_what_rust_log_says_and_warnings_otherwise() {
        let text = logged(None, Notes::Nowhere);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(" WARN tandem_data::x: a note\n"), "{text}");
        let text = logged(Some("tandem_comm=debug"), Notes::Nowhere);
        assert!(
            text.contains("DEBUG tandem_comm::x: a detail member=3"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(logged(Some("off"), Notes::Nowhere), "");
        let (_, problem) = filter(Some("tandem=loud"));
        let problem = problem.unwrap();
        assert!(problem.contains("RUST_LOG is \"tandem=loud\""), "{problem}");
    }

    #[test]
    fn a_note_is_a_line_and_no_log_entry_on_the_same_screen() {
        let text = logged(None, Notes::Lines);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("a warning of others"), "{text}");
        // It is a line even where nothing is logged: that is what notes are for.
        assert_eq!(logged(Some("off"), Notes::Lines), "");
    }

    #[test]
    fn notes_are_sentences() {
        #[derive(Clone, Default)]
        struct Said(Arc<Mutex<Vec<String>>>);
        impl<S: Subscriber> Layer<S> for Said {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                let mut words = Words::default();
                event.record(&mut words);
                self.0.lock().push(words.whole());
            }
        }
        let said = Said::default();
        let subscriber = tracing_subscriber::registry().with(said.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("plain");
            tracing::warn!(error = %"no space", "cannot remove it");
            tracing::warn!(rank = 3, reason = "gone", "no descriptor");
            tracing::warn!(reason = "only this");
        });
        let said = said.0.lock().clone();
        assert_eq!(
            said,
            [
                "plain",
                "cannot remove it (no space)",
                "no descriptor (rank 3, gone)",
                "only this"
            ]
        );
    }

    #[test]
    fn what_one_rank_has_said_the_others_need_not() {
        assert!(is_news("an old copy is used", None));
        assert!(!is_news("an old copy is used", Some(0)));
        assert!(is_news("no descriptor", Some(1)));
        assert!(!is_news("no descriptor", Some(2)));
        assert!(is_news("no descriptor", Some(1)), "its own words");
    }
}
