//! What each launcher's variables, whole or broken, make of a worker.

use std::collections::HashMap;
use tandem_launch::env::{EnvError, Launcher, RendezvousSecret, WorkerEnv};

fn detect(variables: &[(&str, &str)]) -> Result<Option<WorkerEnv>, EnvError> {
    let map: HashMap<_, _> = variables.iter().copied().collect();
    WorkerEnv::detect(&|name| map.get(name).map(|value| (*value).to_owned()))
}

fn worker(variables: &[(&str, &str)]) -> WorkerEnv {
    detect(variables)
        .expect("good variables")
        .expect("a launcher")
}

fn refused(variables: &[(&str, &str)]) -> String {
    detect(variables).expect_err("an error").to_string()
}

/// `base` with `changes`: a variable is replaced, or removed where the new value is `None`.
fn changed<'a>(
    base: &[(&'a str, &'a str)],
    changes: &[(&'a str, Option<&'a str>)],
) -> Vec<(&'a str, &'a str)> {
    let kept = base
        .iter()
        .filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
    let new = changes
        .iter()
        .filter_map(|(name, value)| value.map(|value| (*name, value)));
    kept.copied().chain(new).collect()
}

const TORCHRUN: &[(&str, &str)] = &[
    ("RANK", "5"),
    ("WORLD_SIZE", "8"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "4"),
    ("GROUP_RANK", "1"),
    ("MASTER_ADDR", "node-0"),
    ("MASTER_PORT", "29500"),
];

const SLURM: &[(&str, &str)] = &[
    ("SLURM_JOB_ID", "4242"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "5"),
    ("SLURM_NTASKS", "8"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NODEID", "1"),
    ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
    ("SLURM_STEP_NODELIST", "n[07-08]"),
];

const OPEN_MPI: &[(&str, &str)] = &[
    ("OMPI_COMM_WORLD_RANK", "1"),
    ("OMPI_COMM_WORLD_SIZE", "4"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
    ("OMPI_MCA_ess_base_jobid", "2748252161"),
];

#[test]
fn an_ordinary_shell_is_no_worker() {
    assert_eq!(detect(&[("PATH", "/bin"), ("MASTER_ADDR", "x")]), Ok(None));
}

#[test]
fn torchrun() {
    assert_eq!(
        worker(TORCHRUN),
        WorkerEnv {
            rank: 5,
            world_size: 8,
            local_rank: 1,
            local_world_size: 4,
            node_rank: 1,
            master_addr: "node-0".to_owned(),
            master_port: 29500,
            master_fd: None,
            beside_agent: false,
            secret: RendezvousSecret::Derived("29500 8".to_owned()),
            source: Launcher::Torchrun,
        }
    );
    let without_group = changed(TORCHRUN, &[("GROUP_RANK", None)]);
    assert_eq!(worker(&without_group).node_rank, 1);
    let handed_over = changed(TORCHRUN, &[("TANDEM_MASTER_FD", Some("3"))]);
    assert_eq!(worker(&handed_over).master_fd, Some(3));
    let agent = changed(TORCHRUN, &[("TORCHELASTIC_USE_AGENT_STORE", Some("True"))]);
    assert!(worker(&agent).beside_agent);
}

#[test]
fn a_secret_is_taken_as_it_is_and_otherwise_made_of_what_all_ranks_know() {
    let secret = |base: &[(&str, &str)], name: &'static str, value: Option<&'static str>| {
        worker(&changed(base, &[(name, value)])).secret
    };
    for base in [TORCHRUN, SLURM, OPEN_MPI] {
        let given = secret(base, "TANDEM_RENDEZVOUS_SECRET", Some("open sesame"));
        assert_eq!(given, RendezvousSecret::Given("open sesame".to_owned()));
        assert_eq!(format!("{given:?}"), "Given(..)", "nothing shows it");
        // Rank 0 may know itself as localhost.
        let elsewhere = secret(base, "MASTER_ADDR", Some("another-name"));
        assert_eq!(elsewhere, worker(base).secret);
    }
    for (base, name) in [
        (TORCHRUN, "TORCHELASTIC_RUN_ID"),
        (TORCHRUN, "MASTER_PORT"),
        (SLURM, "SLURM_STEP_ID"),
        (OPEN_MPI, "OMPI_MCA_ess_base_jobid"),
    ] {
        let another = secret(base, name, Some("7777"));
        assert_ne!(another, worker(base).secret, "{name} tells runs apart");
    }
    let empty = changed(TORCHRUN, &[("TANDEM_RENDEZVOUS_SECRET", Some(" "))]);
    assert!(refused(&empty).contains("TANDEM_RENDEZVOUS_SECRET"));
}

#[test]
fn torchrun_wins_over_slurm_and_mpi() {
    let all = [TORCHRUN, SLURM, OPEN_MPI].concat();
    assert_eq!(worker(&all).source, Launcher::Torchrun);
    let both = [SLURM, OPEN_MPI].concat();
    assert_eq!(worker(&both).source, Launcher::Slurm);
}

#[test]
fn a_kubernetes_pytorchjob_has_one_worker_to_a_pod() {
    let pod = worker(&[
        ("RANK", "2"),
        ("WORLD_SIZE", "3"),
        ("MASTER_ADDR", "job-master-0"),
        ("MASTER_PORT", "23456"),
    ]);
    assert_eq!(
        (pod.local_rank, pod.local_world_size, pod.node_rank),
        (0, 1, 2)
    );
}

#[test]
fn every_missing_torchrun_variable_is_named() {
    for name in [
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ] {
        let message = refused(&changed(TORCHRUN, &[(name, None)]));
        assert!(
            message.contains(&format!("variable {name} is not set")),
            "{message}"
        );
    }
    let message = refused(&[("WORLD_SIZE", "4"), ("MASTER_ADDR", "a")]);
    assert!(message.contains("variable RANK is not set"), "{message}");
}

#[test]
fn every_malformed_or_contradictory_torchrun_variable_is_named() {
    for (name, value) in [
        ("RANK", "x"),
        ("RANK", ""),
        ("RANK", "-1"),
        ("RANK", "8"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "4"),
        ("LOCAL_RANK", "1.5"),
        ("LOCAL_WORLD_SIZE", "0"),
        ("LOCAL_WORLD_SIZE", "9"),
        ("MASTER_ADDR", " "),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "65536"),
        ("MASTER_PORT", "http"),
    ] {
        let message = refused(&changed(TORCHRUN, &[(name, Some(value))]));
        assert!(message.contains(name), "{name}={value}: {message}");
    }
    let message = refused(&changed(
        TORCHRUN,
        &[("RANK", Some("0")), ("GROUP_RANK", None)],
    ));
    assert!(message.contains("LOCAL_RANK"), "{message}");
}

#[test]
fn slurm() {
    let found = worker(SLURM);
    assert_eq!(
        (
            found.rank,
            found.world_size,
            found.local_rank,
            found.local_world_size,
            found.node_rank
        ),
        (5, 8, 1, 4, 1)
    );
    assert_eq!(
        (found.master_addr.as_str(), found.source),
        ("n07", Launcher::Slurm)
    );
    let other_rank = changed(
        SLURM,
        &[
            ("SLURM_PROCID", Some("0")),
            ("SLURM_LOCALID", Some("0")),
            ("SLURM_NODEID", Some("0")),
        ],
    );
    assert_eq!(
        worker(&other_rank).master_port,
        found.master_port,
        "all ranks derive one port"
    );
    for other in [("SLURM_JOB_ID", Some("4243")), ("SLURM_STEP_ID", Some("1"))] {
        assert_ne!(
            worker(&changed(SLURM, &[other])).master_port,
            found.master_port,
            "another job or step has another port"
        );
    }
    let chosen = changed(
        SLURM,
        &[
            ("MASTER_ADDR", Some("10.0.0.9")),
            ("MASTER_PORT", Some("1234")),
        ],
    );
    assert_eq!(
        (
            worker(&chosen).master_addr.as_str(),
            worker(&chosen).master_port
        ),
        ("10.0.0.9", 1234)
    );
}

#[test]
fn slurm_with_the_fewest_variables() {
    let found = worker(&[
        ("SLURM_JOB_ID", "7"),
        ("SLURM_PROCID", "3"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_NTASKS_PER_NODE", "2"),
        ("SLURM_JOB_NODELIST", "n[1-2]"),
    ]);
    assert_eq!((found.node_rank, found.local_world_size), (1, 2));
}

#[test]
fn slurm_with_unequal_nodes() {
    let uneven = changed(
        SLURM,
        &[
            ("SLURM_STEP_TASKS_PER_NODE", Some("3(x2),2")),
            ("SLURM_STEP_NODELIST", Some("n[07-08],m1")),
            ("SLURM_PROCID", Some("7")),
            ("SLURM_NODEID", None),
        ],
    );
    assert_eq!(
        (worker(&uneven).node_rank, worker(&uneven).local_world_size),
        (2, 2)
    );
}

#[test]
fn outside_a_step_slurm_starts_no_worker() {
    let cases: [&[(&str, Option<&str>)]; 5] = [
        &[("SLURM_PROCID", None)],
        &[("SLURM_NTASKS", None)],
        &[("SLURM_NTASKS", Some("1"))],
        // A batch script, as newer and older Slurm show it: rank 0 of a job whose other ranks nobody started.
        &[("SLURM_STEP_ID", Some("4294967291"))],
        &[("SLURM_STEP_ID", None), ("ENVIRONMENT", Some("BATCH"))],
    ];
    for case in cases {
        assert_eq!(detect(&changed(SLURM, case)), Ok(None), "{case:?}");
    }
}

/// Such as a container or a shell that has got a job's variables, but is no task of it: rank 0 would wait for the others in
/// vain.
#[test]
fn slurms_variables_without_srun_are_explained() {
    let message = refused(&changed(
        SLURM,
        &[
            ("SLURM_STEP_ID", None),
            ("SLURM_PROCID", Some("0")),
            ("SLURM_NODEID", Some("0")),
            ("SLURM_LOCALID", Some("0")),
        ],
    ));
    assert_eq!(
        message,
        "the environment variable SLURM_STEP_ID is not set, but SLURM_PROCID is: srun sets both, so this process is none of \
         its tasks, and nobody has started the other ranks. Start the workers with srun; or, to let this process start them, \
         unset SLURM_PROCID"
    );
}

#[test]
fn broken_slurm_variables_are_named() {
    let cases: [(&str, Option<&str>); 10] = [
        ("SLURM_PROCID", Some("x")),
        ("SLURM_PROCID", Some("8")),
        ("SLURM_NTASKS", Some("many")),
        ("SLURM_LOCALID", None),
        ("SLURM_LOCALID", Some("4")),
        ("SLURM_NODEID", Some("2")),
        ("SLURM_STEP_TASKS_PER_NODE", Some("4(x3)")),
        ("SLURM_STEP_TASKS_PER_NODE", Some("4(x")),
        ("SLURM_STEP_NODELIST", Some("n[07-")),
        ("SLURM_JOB_ID", None),
    ];
    for (name, value) in cases {
        let message = refused(&changed(SLURM, &[(name, value)]));
        assert!(message.contains(name), "{name}={value:?}: {message}");
    }
    let message = refused(&changed(SLURM, &[("SLURM_STEP_NODELIST", None)]));
    assert!(message.contains("SLURM_NODELIST"), "{message}");
    let message = refused(&changed(SLURM, &[("SLURM_STEP_TASKS_PER_NODE", None)]));
    assert!(message.contains("--ntasks-per-node"), "{message}");
    let message = refused(&changed(SLURM, &[("WORLD_SIZE", Some("4"))]));
    assert!(message.contains("WORLD_SIZE is 4"), "{message}");
    assert_eq!(
        worker(&changed(SLURM, &[("WORLD_SIZE", Some("8"))])).world_size,
        8
    );
}

#[test]
fn open_mpi() {
    let found = worker(OPEN_MPI);
    assert_eq!(
        (
            found.rank,
            found.world_size,
            found.local_rank,
            found.local_world_size,
            found.node_rank
        ),
        (1, 4, 1, 4, 0)
    );
    assert_eq!(
        (found.master_addr.as_str(), found.source),
        ("127.0.0.1", Launcher::OpenMpi)
    );
    assert!((10_000..30_000).contains(&found.master_port));
    let another = worker(&changed(
        OPEN_MPI,
        &[("OMPI_MCA_ess_base_jobid", Some("2748252162"))],
    ));
    assert_ne!(
        another.master_port, found.master_port,
        "another job has another port"
    );
    let newer = changed(
        OPEN_MPI,
        &[
            ("OMPI_MCA_ess_base_jobid", None),
            ("PMIX_NAMESPACE", Some("prterun-h-7@1")),
        ],
    );
    assert_eq!(worker(&newer).world_size, 4);
}

#[test]
fn open_mpi_on_several_hosts_needs_a_master() {
    let spread = changed(
        OPEN_MPI,
        &[
            ("OMPI_COMM_WORLD_RANK", Some("3")),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", Some("2")),
        ],
    );
    let message = refused(&spread);
    assert!(message.contains("-x MASTER_ADDR="), "{message}");
    let told = changed(&spread, &[("MASTER_ADDR", Some("h0"))]);
    assert_eq!(
        (worker(&told).master_addr.as_str(), worker(&told).node_rank),
        ("h0", 1)
    );
}

#[test]
fn broken_open_mpi_variables_are_named() {
    for name in OPEN_MPI.iter().map(|(name, _)| *name).take(4) {
        let message = refused(&changed(OPEN_MPI, &[(name, None)]));
        assert!(
            message.contains(&format!("variable {name} is not set")),
            "{message}"
        );
        let message = refused(&changed(OPEN_MPI, &[(name, Some("?"))]));
        assert!(message.contains(name), "{message}");
    }
    let message = refused(&changed(OPEN_MPI, &[("OMPI_MCA_ess_base_jobid", None)]));
    assert!(message.contains("-x MASTER_PORT="), "{message}");
}
