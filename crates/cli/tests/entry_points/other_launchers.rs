//! The same binaries under other launchers: no controller, and the losses of the local controller bit for bit.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use crate::demo::{self, train};
use crate::workers::{
    Workers, assert_as_local, assert_begins_as_local, clean, free_port, long, plain, short,
    torchrun,
};

#[test]
fn torchruns_variables() {
    let run = short();
    let variables = torchrun(4, 4, "127.0.0.1", free_port());
    Workers::start(&run, 4, variables, plain).succeed();
    assert_as_local(&run, 4);
}

#[test]
fn a_secret_is_taken_from_a_file_and_who_has_another_one_is_refused() {
    let run = short();
    let file = run.storage.path().join("secret");
    std::fs::write(&file, "correct horse battery staple\n").unwrap();
    let ranks = torchrun(4, 4, "127.0.0.1", free_port());
    // Three ranks have none, the fourth has one.
    let variables = |rank| {
        let mut variables = ranks(rank);
        if rank == 3 {
            variables.push(("TANDEM_RENDEZVOUS_SECRET", "f".repeat(64)));
        }
        variables
    };
    let mut others = Workers::start(&run, 4, variables, plain);
    let ended = others.split_off(3).end_within(Duration::from_secs(60));
    assert_eq!(ended[0].code, Some(1));
    let text = &ended[0].text;
    assert!(text.contains("does not have this rank's secret"), "{text}");
    assert!(!text.contains("ffff"), "{text}");
    for rank in 0..3 {
        demo::kill(others.pid(rank), "KILL");
    }
    let ended = others.end_within(Duration::from_secs(60));
    let warned = |ended: &&crate::workers::Ended| ended.text.contains("the ranks have no secret");
    assert!(warned(&&ended[0]), "{}", ended[0].text);
    assert_eq!(ended.iter().filter(warned).count(), 1);

    let run = run.args(["--rendezvous_secret_file", file.to_str().unwrap()]);
    let variables = torchrun(4, 4, "127.0.0.1", free_port());
    let ended = Workers::start(&run, 4, variables, plain).end_within(Duration::from_secs(120));
    assert!(ended.iter().all(|ended| ended.code == Some(0)));
    assert!(!ended.iter().any(|ended| warned(&ended)));
    assert_as_local(&run, 4);
}

#[test]
fn torchrun_whose_agent_keeps_the_port() {
    let run = short();
    // The agent's store, which torchrun leaves at MASTER_PORT.
    let agent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ranks = torchrun(4, 4, "127.0.0.1", agent.local_addr().unwrap().port());
    let variables = |rank| {
        let mut variables = ranks(rank);
        variables.push(("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()));
        variables
    };
    Workers::start(&run, 4, variables, plain).succeed();
    assert_as_local(&run, 4);
}

#[test]
fn one_worker_to_a_pod_as_kubernetes_starts_them() {
    let run = short();
    let ranks = torchrun(4, 1, "localhost", free_port());
    let variables = |rank| {
        let mut variables = ranks(rank);
        variables.retain(|(name, _)| !name.starts_with("LOCAL_") && *name != "NODE_RANK");
        variables
    };
    Workers::start(&run, 4, variables, plain).succeed();
    assert_as_local(&run, 4);
}

#[test]
fn slurms_variables() {
    let run = short();
    let port = free_port().to_string();
    let variables = |rank: usize| {
        vec![
            ("SLURM_JOB_ID", "4242".to_owned()),
            ("SLURM_STEP_ID", "0".to_owned()),
            ("SLURM_PROCID", rank.to_string()),
            ("SLURM_STEP_NUM_TASKS", "4".to_owned()),
            ("SLURM_LOCALID", rank.to_string()),
            ("SLURM_NODEID", "0".to_owned()),
            ("SLURM_STEP_TASKS_PER_NODE", "4".to_owned()),
            ("SLURM_STEP_NODELIST", "localhost".to_owned()),
            // What Slurm derives from the job's number could be taken on a machine that runs other tests.
            ("MASTER_PORT", port.clone()),
        ]
    };
    Workers::start(&run, 4, variables, plain).succeed();
    assert_as_local(&run, 4);
}

#[test]
fn open_mpis_mpirun() {
    let run = short();
    let worker = train(&run);
    let mut mpirun = Command::new("mpirun");
    mpirun
        .args([
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
        ])
        .args(["-np", "4"])
        .arg(worker.get_program())
        .args(worker.get_args());
    clean(&mut mpirun);
    let output = mpirun
        .output()
        .expect("mpirun (on Debian and Ubuntu: apt install openmpi-bin)");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_as_local(&run, 4);
}

#[test]
fn a_worker_is_no_place_to_start_a_cluster_from() {
    let run = short().args(["--cluster", "ray"]);
    let variables = torchrun(4, 4, "127.0.0.1", free_port());
    let ended = Workers::start(&run, 1, variables, plain).end_within(Duration::from_secs(30));
    assert_eq!(ended[0].code, Some(2));
    assert!(ended[0].text.contains("leave out --cluster ray"));
}

#[test]
fn a_lost_worker_ends_the_others_promptly_and_by_name() {
    let run = short().args(["--max_steps", "100000", "--num_epochs", "1000"]);
    let variables = torchrun(4, 4, "127.0.0.1", free_port());
    let mut workers = Workers::start(&run, 4, variables, plain);
    run.wait_for_steps(2);
    demo::kill(workers.pid(3), "KILL");
    let ended = workers.end_within(Duration::from_secs(60));
    for rank in &ended[..3] {
        assert_eq!(rank.code, Some(1));
        assert!(rank.text.contains("rank 3"), "{}", rank.text);
    }
}

#[test]
fn sigterm_lets_all_save_and_the_next_start_continues() {
    // It does not end before the signals come, however late they are.
    let run = long().args(["--max_steps", "1000000"]);
    let variables = torchrun(4, 4, "127.0.0.1", free_port());
    let mut workers = Workers::start(&run, 4, &variables, plain);
    run.wait_for_steps(3);
    for rank in 0..4 {
        demo::kill(workers.pid(rank), "TERM");
    }
    workers.all_end_with(75);
    let done = demo::losses(&run.dir()).len();
    println!("stopped after step {done}");
    let run = run.args(["--max_steps", &(done + 4).to_string()]);
    Workers::start(&run, 4, &variables, plain).succeed();
    assert_begins_as_local(&run, done + 4);
}

#[test]
fn a_signal_to_one_worker_stops_all() {
    // Whoever is told first, all leave after the same step.
    let run = long().args(["--max_steps", "1000000"]);
    let variables = torchrun(4, 4, "127.0.0.1", free_port());
    let mut workers = Workers::start(&run, 4, &variables, plain);
    run.wait_for_steps(2);
    demo::kill(workers.pid(2), "TERM");
    workers.all_end_with(75);
}

/// As in a shell inside an allocation, or a container that has got a job's variables.
#[test]
fn a_jobs_variables_without_srun_are_explained_at_once() {
    let run = short();
    let variables = |_| {
        [
            ("SLURM_JOB_ID", "4242"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NODELIST", "localhost"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec()
    };
    // Waiting for ranks that nobody starts takes five minutes.
    let ended = Workers::start(&run, 1, variables, plain).end_within(Duration::from_secs(60));
    assert_eq!(ended[0].code, Some(2));
    let words = "srun sets both, so this process is none of its tasks";
    assert!(ended[0].text.contains(words), "{}", ended[0].text);
}

/// A rank that waits for others has nothing to save: one signal ends it, by that signal.
#[test]
fn one_signal_ends_a_rank_that_waits_for_the_others() {
    let run = short();
    let variables = torchrun(4, 4, "127.0.0.1", free_port());
    let mut workers = Workers::start(&run, 1, variables, plain);
    workers.wait_for("joining ...");
    demo::kill(workers.pid(0), "TERM");
    let ended = workers.end_within(Duration::from_secs(60));
    assert_eq!(
        ended[0].code, None,
        "ended by the signal: {}",
        ended[0].text
    );
}
