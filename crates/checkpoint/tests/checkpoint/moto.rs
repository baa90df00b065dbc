//! An S3 server on loopback: moto, from PyPI, in an environment of its own if the machine's Python lacks it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tandem_checkpoint::{Store, open_store};

const BUCKET: &str = "tandem-test";

/// A running server, which ends with this value.
pub struct Moto {
    server: Child,
    port: u16,
}

impl Moto {
    /// Starts a server with an empty bucket.
    ///
    /// # Panics
    /// When moto can neither be found nor installed: a test of S3 must not pass without S3.
    pub fn start() -> Self {
        let python = python_with_moto();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        drop(listener);
        let server = Command::new(python)
            .args([
                "-m",
                "moto.server",
                "-H",
                "127.0.0.1",
                "-p",
                &port.to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let moto = Self { server, port };
        moto.create_bucket();
        println!("moto serves S3 on port {port}");
        moto
    }

    /// The store of a prefix in the bucket, opened as a user would.
    pub fn store(&self, prefix: &str) -> Arc<dyn Store> {
        open_store(&self.url(prefix), self.options()).expect("a store")
    }

    /// The prefix, as a user would write it.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Settings of the client: environment variables.
    pub fn options(&self) -> [(String, String); 6] {
        [
            ("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("NOT_FOR_S3", "ignored".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    fn create_bucket(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            match self.put_bucket() {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => return,
                answer => assert!(
                    Instant::now() < deadline,
                    "moto does not answer: {answer:?}"
                ),
            }
            sleep(Duration::from_millis(100));
        }
    }

    fn put_bucket(&self) -> std::io::Result<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port))?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            connection,
            "PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.port
        )?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The Python that has moto; of tests that run together, one installs it.
fn python_with_moto() -> PathBuf {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let has_moto = |python: &Path| {
        let import = ["-c", "import moto.server, flask, flask_cors"];
        let output = Command::new(python).args(import).output();
        output.is_ok_and(|output| output.status.success())
    };
    let system = PathBuf::from("python3");
    if has_moto(&system) {
        return system;
    }
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto");
    let python = environment.join("bin/python");
    if !has_moto(&python) {
        println!("installing moto into {}", environment.display());
        run(Command::new(&system).args(["-m", "venv"]).arg(&environment));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "moto[server]"]));
        assert!(
            has_moto(&python),
            "moto was installed but cannot be imported"
        );
    }
    python
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{command:?} failed ({status:?}): the test of S3 needs moto, and installing it needs venv and pip"
    );
}
