//! From process start to exit code: who am I, run, and say how it ended.

use std::process::ExitCode;

use tandem_launch::client::ControlClient;
use tandem_launch::env::WorkerEnv;
use tandem_launch::exit_code;
use tandem_launch::parent::die_with_parent;
use tandem_launch::protocol::{Metrics, WorkerEvent};

use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::log;
pub use crate::role::Role;
use crate::show::screen;

impl Role {
    /// Finds out from the environment, and starts the log of this process: from here on it is known where that goes.
    pub fn detect(environment: &Environment) -> Outcome<Self> {
        let lookup = &|name: &str| environment.get(name);
        die_with_parent(lookup).map_err(Failure::other)?;
        let found = WorkerEnv::detect(lookup).map_err(|error| Failure::usage(error.to_string()))?;
        let role = match found {
            None => Self::Controller,
            Some(env) => {
                let control = ControlClient::from_env(lookup, env.rank).map_err(Failure::other)?;
                Self::Worker { env, control }
            }
        };
        log::start(environment, &role);
        Ok(role)
    }
}

/// How a worker's work ended, when it ended well.
pub enum Ended {
    /// It is done.
    Finished(Metrics),
    /// It was asked to stop; everything is saved.
    StoppedAfterSaving,
}

/// Ends a worker: its controller learns how, in its own words.
pub fn end_worker(env: &WorkerEnv, control: ControlClient, result: Outcome<Ended>) -> ExitCode {
    let code = match result {
        Ok(Ended::Finished(metrics)) => {
            control.send(&WorkerEvent::Done { metrics });
            exit_code::OK
        }
        Ok(Ended::StoppedAfterSaving) => exit_code::STOPPED_AFTER_SAVING,
        Err(failure) => {
            if control.is_connected() {
                control.send(&WorkerEvent::Error {
                    rank: env.rank,
                    step: failure.step,
                    message: failure.message.clone(),
                    secondary: failure.secondary,
                    exit_code: failure.exit_code,
                });
            }
            screen::last_line(&in_own_words(env, &failure.message));
            failure.exit_code
        }
    };
    control.close();
    to_exit_code(code)
}

/// What a worker prints of its failure: with the rank where there are several and it does not speak of itself anyway.
fn in_own_words(env: &WorkerEnv, message: &str) -> String {
    let rank = env.rank;
    match env.world_size {
        1 => format!("error: {message}"),
        _ if message.starts_with(&format!("rank {rank} ")) => format!("error: {message}"),
        _ => format!("rank {rank}: {message}"),
    }
}

/// Ends a command that is no worker.
pub fn end(result: Outcome<i32>) -> ExitCode {
    match result {
        Ok(code) => to_exit_code(code),
        Err(failure) => {
            screen::last_line(&format!("error: {}", failure.message));
            to_exit_code(failure.exit_code)
        }
    }
}

fn to_exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
