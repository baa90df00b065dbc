//! The controller's end of the control sockets of one attempt.
//!
//! Every attempt has a socket of its own, in a private folder in the system's temporary folder: the run's folder may be
//! on a file system without sockets, and its path longer than the about 100 bytes that a socket's may have. The folder
//! is deleted as soon as all ranks are connected, so that a killed controller rarely leaves one behind; the next controller
//! removes what one has left.

use super::run_lock::{LockOwner, MAX_FILE_BYTES};
use crate::protocol::{Command, MAX_LINE_BYTES, Parsed, VERSION, WorkerEvent, encode, parse_event};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use std::collections::HashSet;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use tandem_files::read_small;
use tempfile::TempDir;

const FOLDER_PREFIX: &str = "tandem-";
const SOCKET_FILE: &str = "control.sock";
/// Says which process has made the folder.
const OWNER_FILE: &str = "owner.json";

#[derive(Debug)]
pub(super) struct ControlServer {
    /// None once all ranks are connected.
    door: Option<Door>,
    connections: Vec<Connection>,
    num_workers: usize,
    /// Whether ranks that connect from now on must be told to stop.
    stopping: bool,
}

#[derive(Debug)]
struct Door {
    listener: UnixListener,
    folder: TempDir,
}

/// What came over the sockets.
#[derive(Debug)]
pub(super) enum Incoming {
    Event { rank: usize, event: WorkerEvent },
    Warning(String),
}

/// The path of a socket has 107 bytes at most; what is below the temporary folder takes less than 40 of them.
const LONGEST_FOLDER: usize = 67;

impl ControlServer {
    pub(super) fn open(num_workers: usize) -> io::Result<Self> {
        let usual = std::env::temp_dir();
        let temporary = match usual.as_os_str().len() > LONGEST_FOLDER {
            true => Path::new("/tmp"),
            false => &usual,
        };
        Self::open_in(temporary, num_workers).map_err(|error| {
            let problem = format!("{error} (TMPDIR names another folder for temporary files)");
            io::Error::new(error.kind(), problem)
        })
    }

    fn open_in(temporary: &Path, num_workers: usize) -> io::Result<Self> {
        remove_abandoned(temporary);
        // Only this user may enter the folder, whatever the umask; who talks to the controller is looked at besides.
        let folder = tempfile::Builder::new()
            .prefix(FOLDER_PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(temporary)?;
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
        let owner = serde_json::to_vec(&LockOwner::this_process())?;
        std::fs::write(folder.path().join(OWNER_FILE), owner)?;
        let listener = UnixListener::bind(folder.path().join(SOCKET_FILE))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            door: Some(Door { listener, folder }),
            connections: Vec::new(),
            num_workers,
            stopping: false,
        })
    }

    /// The path for `TANDEM_CONTROL`; empty once all ranks are connected.
    pub(super) fn path(&self) -> PathBuf {
        match &self.door {
            Some(door) => door.folder.path().join(SOCKET_FILE),
            None => PathBuf::new(),
        }
    }

    /// Descriptors that become readable when there is something to [`receive`](Self::receive).
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let door = self.door.iter().map(|door| door.listener.as_fd());
        let open = self.connections.iter().filter(|connection| connection.open);
        door.chain(open.map(|connection| connection.socket.as_fd()))
            .collect()
    }

    /// Everything that workers have sent until now, never waiting. What a dead worker sent is all there: it is in the
    /// kernel's buffer.
    pub(super) fn receive(&mut self) -> Vec<Incoming> {
        let mut incoming = Vec::new();
        self.accept(&mut incoming);
        let mut connected: HashSet<usize> = HashSet::new();
        for connection in &mut self.connections {
            let was_known = connection.rank.is_some();
            connection.receive(self.num_workers, &mut incoming);
            if !was_known && connection.rank.is_some() && self.stopping {
                connection.send(Command::Stop);
            }
            connected.extend(connection.rank);
        }
        if connected.len() == self.num_workers {
            self.door = None;
        }
        incoming
    }

    /// Sends `command` to all ranks; a `stop` also reaches those that connect later.
    pub(super) fn broadcast(&mut self, command: Command) {
        self.stopping |= command == Command::Stop;
        for connection in &mut self.connections {
            if connection.rank.is_some() {
                connection.send(command);
            }
        }
    }

    /// Sends `command` to the lowest rank that is connected. What ranks agree on needs one of them to be told; all of them, at
    /// different moments, could do it twice.
    pub(super) fn tell_one(&mut self, command: Command) {
        let connected = self.connections.iter_mut();
        let lowest = connected
            .filter(|connection| connection.rank.is_some())
            .min_by_key(|connection| connection.rank);
        if let Some(connection) = lowest {
            connection.send(command);
        }
    }

    fn accept(&mut self, incoming: &mut Vec<Incoming>) {
        let Some(door) = &self.door else { return };
        loop {
            let accepted = door.listener.accept().and_then(|(socket, _)| {
                check_peer(&socket)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            match accepted {
                Ok(socket) => self.connections.push(Connection::new(socket)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let text = format!("a worker's control connection failed: {error}");
                    return incoming.push(Incoming::Warning(text));
                }
            }
        }
    }
}

/// Refuses what another user's process says.
fn check_peer(socket: &UnixStream) -> io::Result<()> {
    let peer = socket_peercred(socket)?;
    if peer.uid == geteuid() {
        return Ok(());
    }
    let who = format!("process {:?} of user {:?}", peer.pid, peer.uid);
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("refused {who}, who is not the user of this controller"),
    ))
}

/// Removes the folders of controllers that were killed before all of their workers were connected: those with our name, of
/// this user, that say inside whose they are, and whose owner on this host is no more. Of what is in them, only what we
/// have put there is removed. It is a courtesy: what cannot be removed stays.
fn remove_abandoned(temporary: &Path) {
    let Ok(entries) = std::fs::read_dir(temporary) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = name
            .as_encoded_bytes()
            .starts_with(FOLDER_PREFIX.as_bytes());
        if is_ours && is_abandoned(&entry.path()) {
            for file in [SOCKET_FILE, OWNER_FILE] {
                let _ = std::fs::remove_file(entry.path().join(file));
            }
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn is_abandoned(folder: &Path) -> bool {
    let is_own_folder = std::fs::symlink_metadata(folder)
        .is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
    let file = folder.join(OWNER_FILE);
    let is_file = || std::fs::symlink_metadata(&file).is_ok_and(|found| found.is_file());
    if !is_own_folder || !is_file() {
        return false;
    }
    let owner = read_small(&file, MAX_FILE_BYTES)
        .ok()
        .and_then(|text| serde_json::from_slice::<LockOwner>(&text).ok());
    owner.is_some_and(|owner| !owner.may_be_alive())
}

#[derive(Debug)]
struct Connection {
    socket: UnixStream,
    /// Known once the worker said hello.
    rank: Option<usize>,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    open: bool,
    /// What has been warned about: a newer worker would otherwise cause a warning at every step.
    warned: HashSet<String>,
}

impl Connection {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            rank: None,
            partial: Vec::new(),
            open: true,
            warned: HashSet::new(),
        }
    }

    fn receive(&mut self, num_workers: usize, incoming: &mut Vec<Incoming>) {
        let mut chunk = [0; 16 * 1024];
        while self.open {
            match self.socket.read(&mut chunk) {
                Ok(0) => self.open = false,
                Ok(count) => self.take(&chunk[..count], num_workers, incoming),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A worker that was killed with our commands unread resets the connection.
                Err(_) => self.open = false,
            }
        }
    }

    fn take(&mut self, bytes: &[u8], num_workers: usize, incoming: &mut Vec<Incoming>) {
        self.partial.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = self.partial[start..].iter().position(|byte| *byte == b'\n') {
            let line = self.partial[start..start + length].to_vec();
            start += length + 1;
            self.take_line(&line, num_workers, incoming);
        }
        self.partial.drain(..start);
        if self.partial.len() > MAX_LINE_BYTES {
            self.open = false;
            let text =
                format!("closed the connection: a line is longer than {MAX_LINE_BYTES} bytes");
            self.warn_once(text, incoming);
        }
    }

    fn take_line(&mut self, line: &[u8], num_workers: usize, incoming: &mut Vec<Incoming>) {
        let event = match parse_event(line) {
            Ok(Parsed::Known {
                message,
                unknown_fields,
            }) => {
                for field in unknown_fields {
                    self.warn_once(format!("ignored the unknown field {field:?}"), incoming);
                }
                message
            }
            Ok(Parsed::Unknown { name }) => {
                return self.warn_once(format!("ignored the unknown event {name:?}"), incoming);
            }
            Err(error) => return self.warn_once(format!("ignored a line: {error}"), incoming),
        };
        if let WorkerEvent::Hello { rank, version, .. } = event {
            if rank >= num_workers {
                return self.warn_once(format!("ignored a hello as rank {rank}"), incoming);
            }
            self.rank = Some(rank);
            if version > VERSION {
                let text =
                    format!("speaks version {version} of the protocol, newer than {VERSION}");
                self.warn_once(text, incoming);
            }
        }
        match self.rank {
            Some(rank) => incoming.push(Incoming::Event { rank, event }),
            None => self.warn_once("ignored an event before hello".to_owned(), incoming),
        }
    }

    /// Commands are a few bytes: a buffer without room for them belongs to a worker that does not read, and a dead
    /// worker's broken connection is noticed elsewhere. Both are taken care of by the watch on the process.
    fn send(&mut self, command: Command) {
        let _ = self.socket.write_all(&encode(&command));
    }

    fn warn_once(&mut self, what: String, incoming: &mut Vec<Incoming>) {
        if self.warned.insert(what.clone()) {
            let who = match self.rank {
                Some(rank) => format!("rank {rank}"),
                None => "a worker that has not said hello".to_owned(),
            };
            incoming.push(Incoming::Warning(format!(
                "control socket of {who}: {what}"
            )));
        }
    }
}

#[cfg(test)]
mod tests;
