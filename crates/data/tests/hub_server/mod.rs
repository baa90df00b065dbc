//! A Hugging Face hub as small as a client can tell: listings of repositories, and their files.
//!
//! Large files are answered as the real one does, by a redirect to another place that knows nothing of repositories.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::json;

/// One repository at its `main` branch.
#[derive(Clone, Default)]
pub struct Repository {
    /// The commit of `main`.
    pub commit: String,
    /// Contents by path.
    pub files: HashMap<String, Vec<u8>>,
    /// The token without which it answers 401.
    pub token: Option<String>,
    /// Everybody may see the list of files, and nobody gets one.
    pub is_gated: bool,
}

#[derive(Default)]
struct State {
    /// By `models/owner/name` or `datasets/owner/name`.
    repositories: HashMap<String, Repository>,
    requests: Vec<String>,
    /// Breaks the next answer that is longer than this off there.
    break_at: Option<usize>,
    is_closed: bool,
}

/// A server on loopback that ends when it is dropped.
pub struct HubServer {
    port: u16,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

struct Request {
    path: String,
    headers: HashMap<String, String>,
}

impl HubServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().is_closed {
                    return;
                }
                let state = Arc::clone(&shared);
                thread::spawn(move || answer(stream.unwrap(), port, &state));
            }
        });
        Self {
            port,
            state,
            thread: Some(thread),
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn put(&self, name: &str, repository: Repository) {
        let mut state = self.state.lock().unwrap();
        state.repositories.insert(name.into(), repository);
    }

    pub fn break_next_answer_at(&self, length: usize) {
        self.state.lock().unwrap().break_at = Some(length);
    }

    /// `PATH RANGE` of all requests for contents so far.
    pub fn downloads(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let is_content = |request: &&String| {
            // A client asks for the first byte to learn a file's size.
            !request.starts_with("/api/") && !request.ends_with("bytes=0-0")
        };
        state.requests.iter().filter(is_content).cloned().collect()
    }

    pub fn request_count(&self) -> usize {
        self.state.lock().unwrap().requests.len()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.lock().unwrap().is_closed = true;
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

fn answer(mut stream: TcpStream, port: u16, state: &Mutex<State>) {
    let Some(request) = read_request(&stream) else {
        return;
    };
    let mut state = state.lock().unwrap();
    let range = request.headers.get("range").cloned().unwrap_or_default();
    state.requests.push(format!("{} {range}", request.path));
    let (head, body) = respond(&request, port, &state.repositories);
    let length = body.len();
    let end = match state.break_at {
        Some(at) if at < length => state.break_at.take().unwrap(),
        _ => length,
    };
    drop(state);
    let head = format!("HTTP/1.1 {head}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[..end]);
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        });
    let headers = headers.collect();
    Some(Request { path, headers })
}

/// Status and headers, and the body.
fn respond(
    request: &Request,
    port: u16,
    repositories: &HashMap<String, Repository>,
) -> (String, Vec<u8>) {
    let missing = || ("404 Not Found\r\n".to_owned(), Vec::new());
    let path = request.path.trim_start_matches('/');
    if let Some(path) = path.strip_prefix("api/") {
        let Some((name, _revision)) = path.split_once("/revision/") else {
            return missing();
        };
        let Some(repository) = repositories.get(name) else {
            return missing();
        };
        let sent = request.headers.get("authorization");
        let wanted = repository
            .token
            .as_ref()
            .map(|token| format!("Bearer {token}"));
        if wanted.is_some() && sent != wanted.as_ref() {
            return ("401 Unauthorized\r\n".into(), Vec::new());
        }
        let mut names: Vec<&String> = repository.files.keys().collect();
        names.sort();
        let siblings: Vec<_> = names
            .iter()
            .map(|name| json!({"rfilename": name}))
            .collect();
        let listing = json!({"id": name, "sha": repository.commit, "siblings": siblings});
        return ("200 OK\r\n".into(), listing.to_string().into_bytes());
    }
    let (path, is_storage) = match path.strip_prefix("storage/") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let Some((name, rest)) = path.split_once("/resolve/") else {
        return missing();
    };
    let name = if name.starts_with("datasets/") {
        name.to_owned()
    } else {
        format!("models/{name}")
    };
    let Some(repository) = repositories.get(&name) else {
        return missing();
    };
    if repository.is_gated {
        return ("403 Forbidden\r\n".into(), Vec::new());
    }
    let Some((revision, file)) = rest.split_once('/') else {
        return missing();
    };
    let Some(content) = repository.files.get(file) else {
        return missing();
    };
    if revision != "main" && revision != repository.commit {
        return missing();
    }
    let etag = format!(
        "{:x}",
        content
            .iter()
            .fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(*b))
    );
    let about = format!("x-repo-commit: {}\r\n", repository.commit);
    let is_large = file.ends_with(".safetensors") || file.ends_with(".parquet");
    if is_large && !is_storage {
        let head = format!(
            "302 Found\r\n{about}x-linked-etag: \"{etag}\"\r\nx-linked-size: {}\r\n\
             Location: http://127.0.0.1:{port}/storage/{path}\r\n",
            content.len()
        );
        return (head, Vec::new());
    }
    let about = if is_storage { String::new() } else { about };
    ranged(request, content, &format!("{about}ETag: \"{etag}\"\r\n"))
}

/// The part of `content` that a `Range: bytes=FROM-TO` asks for.
fn ranged(request: &Request, content: &[u8], headers: &str) -> (String, Vec<u8>) {
    let range = request.headers.get("range").and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let from: usize = from.parse().ok()?;
        let to = to.parse().map_or(content.len(), |to: usize| to + 1);
        Some((from, to.min(content.len())))
    });
    let Some((from, to)) = range.filter(|(from, to)| from < to) else {
        return (format!("200 OK\r\n{headers}"), content.to_vec());
    };
    let head = format!(
        "206 Partial Content\r\n{headers}Content-Range: bytes {from}-{}/{}\r\n",
        to - 1,
        content.len()
    );
    (head, content[from..to].to_vec())
}
