//! Signals as something to wait for, together with sockets.

use super::StopSignal;
use crate::stop_signals::hang_up_is_ignored;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The handlers, for as long as this value lives.
pub(super) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

/// A signal that means something here. SIGCHLD only ends a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Stop(StopSignal),
    SaveNow,
}

impl Signals {
    pub(super) fn install() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let mut signals = vec![SIGINT, SIGTERM, SIGUSR1, SIGCHLD];
        if !hang_up_is_ignored() {
            signals.push(SIGHUP);
        }
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, signals)?;
        Ok(Self { delivery })
    }

    /// Sleeps until a signal came, one of `fds` can be read, or `timeout` is over.
    pub(super) fn wait(&self, fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
        let mut fds: Vec<_> = std::iter::once(self.delivery.get_read().as_fd())
            .chain(fds.iter().copied())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        // A timeout beyond the range of the type is as good as none; the caller looks at the clock itself.
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What came since the last call. Two signals of one kind in quick succession are one: some launchers send a
    /// signal to a process group and to its leader.
    pub(super) fn take(&mut self) -> Vec<Received> {
        self.delivery
            .pending()
            .filter_map(|signal| match signal {
                SIGINT => Some(Received::Stop(StopSignal::Interrupt)),
                SIGTERM => Some(Received::Stop(StopSignal::Terminate)),
                SIGHUP => Some(Received::Stop(StopSignal::HangUp)),
                SIGUSR1 => Some(Received::SaveNow),
                _ => None,
            })
            .collect()
    }
}
