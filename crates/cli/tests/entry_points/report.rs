//! `tandem report`: the page of real runs, in a real browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::demo::{Run, losses, train};
use crate::programs::write_script;

const TANDEM: &str = env!("CARGO_BIN_EXE_tandem");

/// Where pictures stay, for people and for CI to keep.
const KEPT: &str = env!("CARGO_TARGET_TMPDIR");

fn report(args: &[&Path]) -> Output {
    let mut command = Command::new(TANDEM);
    command.arg("report").args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// A name that must stay one.
const EVIL: &str = "<img src=x onerror='window.evil=1'> & \"co\"";

/// A folder as a run leaves it that was made to harm, and that has failed, gone on, evaluated, and been damaged.
fn made_up(storage: &Path) -> PathBuf {
    let folder = storage.join(EVIL);
    fs::create_dir_all(&folder).unwrap();
    let mut metrics = String::from("no line of metrics\n");
    for step in 1..=40 {
        let loss = 6.0 / (1.0 + f64::from(step) / 10.0) + f64::from(step % 3) * 0.05;
        let line = json!({
            "step": step, "epoch": step / 20, "loss": loss, "lr": 1e-4 * f64::from(step) / 40.0, "grad_norm": 1.0 + 3.0 / f64::from(step),
            "tokens_per_s": 900 + step % 7, "step_time_s": 0.5, "tokens_seen": 512 * step, "mfu": 0.41,
            "experts": {"aux_loss": 1.1, "max_over_mean": [1.25, 2.0 + f64::from(step) / 40.0], "idle": step % 2},
            "peak_memory_mb": [300 + step, 290], "time": 1_700_000_000.0 + 0.5 * f64::from(step)
        });
        metrics += &format!("{line}\n");
        if step % 10 == 0 {
            let line =
                json!({"step": step, "eval_loss": loss + 0.3, "perplexity": (loss + 0.3).exp()});
            metrics += &format!("{line}\n");
        }
    }
    fs::write(folder.join("metrics.jsonl"), metrics).unwrap();
    let saved = |step: u32| json!({"time": 1_700_000_000.5 + 0.5 * f64::from(step), "event": "saved", "step": step, "name": EVIL, "seconds": 0.4, "blocked_s": 0.1});
    fs::write(
        folder.join("events.jsonl"),
        format!("{}\n{}\n", saved(20), saved(40)),
    )
    .unwrap();
    let attempt = |from: &str, to: &str, outcome: &str| {
        json!({"started_at": format!("2023-11-14T22:13:{from}Z"), "ended_at": format!("2023-11-14T22:13:{to}Z"), "outcome": outcome,
            "reason": "rank 1 failed at step 25: <script>window.evil=1</script>"})
    };
    let record = json!({"state": "ERRORED", "host": "<b>n1</b>", "attempts": [attempt("19", "32", "failed"), attempt("33", "41", "failed")]});
    fs::write(folder.join("run.json"), record.to_string()).unwrap();
    let config = json!({"entry_point": "train_fsdp", "flags": {"experiment_name": EVIL, "learning_rate": 1e-4, "</script>": "<!--"}});
    fs::write(folder.join("run_config.json"), config.to_string()).unwrap();
    folder
}

/// How much a color stands out from the card that it is on, by WCAG's formula.
const CONTRAST: &str = "((name) => {
    const probe = document.createElement('i');
    document.body.append(probe);
    const light = (color) => {
        probe.style.color = `var(${color})`;
        const parts = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [a, b] = [light(name), light('--card')];
    probe.remove();
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})";

#[test]
fn a_page_about_two_runs_shows_them_in_a_browser() {
    let run =
        Run::new("fsdp", 1, 2).args(["--max_steps", "8", "--save_steps", "3", "--profile", "2"]);
    let folder = run.succeed();
    let other = made_up(run.storage.path());
    let work = Path::new(KEPT).join("report");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).unwrap();
    let page = work.join("report.html");
    let output = report(&[&folder, &other, Path::new("-o"), &page]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(
        said.contains("metrics.jsonl: 1 line(s) left out: line 1 (")
            && said.contains("at step 40: at most 3.00 x the mean (layer 1 of the 2 with experts)"),
        "{said}"
    );

    let mut browser = Browser::start(&work.join("profile"));
    browser.look((1280, 900), "light");
    browser.open(&page);
    shows_everything(&mut browser);
    tells_under_the_mouse(&mut browser, &losses(&folder));
    does_what_its_controls_say(&mut browser);
    assert_eq!(
        browser.evaluate("window.evil === undefined && !document.querySelector('img')"),
        true
    );

    let mut backgrounds = Vec::new();
    for theme in ["light", "dark"] {
        browser.look((1280, 900), theme);
        backgrounds.push(browser.evaluate("getComputedStyle(document.body).backgroundColor"));
        for (color, least) in [
            ("--ink", 7.0),
            ("--soft", 4.5),
            ("--accent", 4.5),
            ("--bad", 4.5),
            ("--good", 4.5),
        ] {
            let contrast = browser.evaluate(&format!("{CONTRAST}('{color}')"));
            assert!(
                contrast.as_f64().unwrap() >= least,
                "{color} in {theme}: {contrast}"
            );
        }
        for index in 0..8 {
            let contrast = browser.evaluate(&format!("{CONTRAST}('--c{index}')"));
            assert!(
                contrast.as_f64().unwrap() >= 3.0,
                "curve {index} in {theme}: {contrast}"
            );
        }
        let picture = browser.picture(&Path::new(KEPT).join(format!("report-{theme}.png")));
        assert!(
            picture.starts_with(b"\x89PNG") && picture.len() > 20_000,
            "{}",
            picture.len()
        );
    }
    assert_ne!(backgrounds[0], backgrounds[1]);
    for width in [390, 800, 1600] {
        browser.look((width, 900), "light");
        browser.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))",
        );
        let sizes = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]");
        assert!(sizes[0].as_f64() <= sizes[1].as_f64(), "{width}: {sizes}");
    }
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    for url in browser.requests() {
        assert!(
            url.starts_with("file://") && url.ends_with("report.html") || url.starts_with("data:"),
            "{url}"
        );
    }
}

fn shows_everything(browser: &mut Browser) {
    let shown = browser.evaluate("[...document.querySelectorAll('.chart')].filter((it) => !it.hidden).map((it) => it.dataset.chart)");
    let expected = [
        "loss",
        "eval_loss",
        "perplexity",
        "lr",
        "grad_norm",
        "tokens_per_s",
        "mfu",
        "step_time_s",
        "memory",
        "saves",
        "expert_load",
        "idle_experts",
        "aux_loss",
    ];
    assert_eq!(shown, json!(expected));
    for (chart, curves) in [
        ("loss", 2),
        ("eval_loss", 1),
        ("memory", 2),
        ("saves", 2),
        ("expert_load", 1),
    ] {
        let count = browser.evaluate(&format!(
            "document.querySelectorAll('[data-chart={chart}] .curve').length"
        ));
        assert_eq!(count, curves, "{chart}");
    }
    let paths = browser
        .evaluate("[...document.querySelectorAll('svg .curve')].map((it) => it.getAttribute('d'))");
    for path in paths.as_array().unwrap() {
        let path = path.as_str().unwrap();
        assert!(
            path.starts_with('M') && !path.contains("NaN") && !path.contains("Infinity"),
            "{path}"
        );
    }
    let text = browser.evaluate("document.body.innerText");
    let text = text.as_str().unwrap();
    for expected in [
        EVIL,
        "where a step's time goes",
        "layers, backward",
        "flags that differ",
        "tokens per expert",
        "experts without a token",
        "time line",
        "what could not be read",
        "metrics.jsonl: 1 line(s) left out",
        "<b>n1</b>",
    ] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    let marks = ["attempt", "save", "failure"].map(|kind| {
        browser.evaluate(&format!(
            "document.querySelectorAll('#timeline .{kind}').length"
        ))
    });
    assert_eq!(
        marks,
        [json!(3), json!(2 + 3), json!(2)],
        "one start and steps 3, 6, 8 of the real run"
    );
}

fn tip(browser: &mut Browser) -> String {
    let text = browser.evaluate(
        "document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText",
    );
    text.as_str().unwrap().to_owned()
}

fn tells_under_the_mouse(browser: &mut Browser, losses: &[f64]) {
    assert_eq!(tip(browser), "");
    // At the left end of the loss: both runs' first steps.
    let (x, y) = browser.middle("[data-chart=loss] .plot");
    let left = browser
        .evaluate("document.querySelector('[data-chart=loss] .plot').getBoundingClientRect().x");
    browser.mouse("mouseMoved", (left.as_f64().unwrap() + 57.0, y));
    let text = tip(browser);
    assert!(text.starts_with("loss at step 1"), "{text}");
    let first = format!("{:.4}", losses[0]);
    let first = first.trim_end_matches('0');
    assert!(
        text.contains(&first[..first.len() - 1]) && text.contains(EVIL),
        "no {first} in {text}"
    );
    browser.mouse("mouseMoved", (x, y));
    let text = tip(browser);
    assert!(
        text.starts_with("loss at step 2"),
        "the middle of 40: {text}"
    );
    let middle = browser.middle("#timeline .failure");
    browser.mouse("mouseMoved", (middle.0 + 1.0, middle.1 + 1.0));
    let text = tip(browser);
    assert!(text.contains("<script>window.evil=1</script>"), "{text}");
    let middle = browser.middle("#profile .bar i");
    browser.mouse("mouseMoved", middle);
    assert!(tip(browser).contains("% of a step"));
    browser.mouse("mouseMoved", (2.0, 2.0));
    assert_eq!(tip(browser), "");
}

fn does_what_its_controls_say(browser: &mut Browser) {
    let path = "document.querySelector('[data-chart=loss] .curve').getAttribute('d')";
    let plain = browser.evaluate(path);
    browser.click("[data-axis=tokens]");
    assert_ne!(browser.evaluate(path), plain);
    browser.click("[data-axis=step]");
    assert_eq!(browser.evaluate(path), plain);
    browser.click("[data-chart=loss] button");
    assert_ne!(browser.evaluate(path), plain, "logarithmic");
    browser.click("[data-chart=loss] button");
    browser.evaluate("(() => { const it = document.getElementById('smoothing'); it.value = 0.9; it.dispatchEvent(new Event('input')); })()");
    assert_ne!(browser.evaluate(path), plain, "smooth");
    assert_eq!(
        browser.evaluate("document.querySelectorAll('[data-chart=loss] .raw').length"),
        2
    );
    browser.evaluate("(() => { const it = document.getElementById('smoothing'); it.value = 0; it.dispatchEvent(new Event('input')); })()");
    let (x, y) = browser.middle("[data-chart=loss] .plot");
    browser.mouse("mouseMoved", (x, y));
    browser.mouse("mousePressed", (x, y));
    browser.mouse("mouseMoved", (x + 200.0, y));
    browser.mouse("mouseReleased", (x + 200.0, y));
    assert_eq!(
        browser.evaluate("document.getElementById('unzoom').hidden"),
        false,
        "a part is chosen"
    );
    browser.click("#unzoom");
    assert_eq!(browser.evaluate(path), plain);
    browser.click("#runs button");
    assert_eq!(
        browser.evaluate("document.querySelectorAll('[data-chart=loss] .curve').length"),
        1
    );
    browser.click("#runs button");
    assert_eq!(browser.evaluate(path), plain);
    let page = "getComputedStyle(document.body).backgroundColor";
    let light = browser.evaluate(page);
    browser.click("#theme");
    assert_ne!(browser.evaluate(page), light);
    browser.click("#theme");
    assert_eq!(browser.evaluate(page), light);
}

#[test]
fn what_is_no_run_and_what_cannot_be_written_is_said() {
    let storage = tempfile::tempdir().unwrap();
    let run = made_up(storage.path());
    let fails = |args: &[&Path], code, words: &str| {
        let output = report(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(words), "no {words:?} in {text}");
    };
    let o = Path::new("-o");
    let page = storage.path().join("page.html");
    fails(
        &[&storage.path().join("none"), o, &page],
        2,
        "is no folder; give the folders of runs",
    );
    fails(&[storage.path(), o, &page], 2, "is not the folder of a run");
    assert!(!page.exists());
    fails(
        &[&run, o, storage.path()],
        2,
        "is a folder; give the name of the page",
    );
    fails(
        &[&run, o, &storage.path().join("no/page.html")],
        1,
        "cannot write",
    );
    // A browser is opened with the page's whole path, and one that is not there is said.
    let bin = storage.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let opened = storage.path().join("opened");
    let open = |args: &[&str]| {
        let mut command = Command::new(TANDEM);
        command
            .current_dir(storage.path())
            .env("PATH", &bin)
            .arg("report")
            .arg(&run)
            .args(args);
        command.output().unwrap()
    };
    let output = open(&["--open"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("report.html (") && text.contains("open it yourself"),
        "{text}"
    );
    let opener = bin.join("xdg-open");
    write_script(
        &opener,
        &format!("printf %s \"$1\" > '{}'", opened.display()),
    );
    assert!(open(&["--open"]).status.success());
    let path = fs::read_to_string(&opened).unwrap();
    assert_eq!(
        Path::new(&path).canonicalize().unwrap(),
        storage.path().join("report.html").canonicalize().unwrap()
    );
}

/// The lines that a run ends with, and where all of its lines are.
#[test]
fn a_run_says_what_came_out_and_its_log_has_all_of_it() {
    let run = Run::new("fsdp", 1, 2).args([
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--log_interval",
        "2",
    ]);
    let output = train(&run).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let found = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no {start:?} in {text}"))
            .to_owned()
    };
    let last = format!("result    loss {:.4} at the end", losses(&run.dir())[3]);
    found(&last);
    assert!(found("best ").contains("(step 4, the newest)"), "{text}");
    assert!(found("continue ").ends_with("--max_steps 8"), "{text}");
    for step in [1, 2, 4] {
        assert!(
            found(&format!("step {step}/4  epoch 1")).contains("MFU "),
            "{text}"
        );
    }
    assert!(!text.contains("step 3/4"), "{text}");
    found("mfu       model FLOPs over ");

    // All that was printed is kept, with the time.
    let log = fs::read_to_string(run.dir().join("logs/run.log")).unwrap();
    for line in text.lines() {
        assert!(log.contains(&format!("Z {line}\n")), "no {line:?} in {log}");
    }
    for rank in 0..2 {
        let log = fs::read_to_string(run.dir().join(format!("logs/rank_{rank}.log"))).unwrap();
        for words in [
            "Z loading",
            "Z training, from step 1 to 4",
            "Z step 4: loss ",
            "Z training is over",
        ] {
            assert!(log.contains(words), "no {words} in {log}");
        }
    }
    // The commands work as they stand.
    for (start, made) in [
        ("export ", "run-model/config.json"),
        ("report ", "run.html"),
    ] {
        let line = found(start);
        let command = line.split_once("  ").unwrap().1.trim();
        let status = Command::new("sh")
            .args(["-c", command])
            .current_dir(run.storage.path())
            .output()
            .unwrap();
        assert!(status.status.success(), "{command}: {status:?}");
        assert!(run.storage.path().join(made).is_file(), "{command}");
    }
    // And so do the files for others.
    let events: Vec<Value> = fs::read_to_string(run.dir().join("events.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["started", "saved", "saved", "ended"]);
    let curves = fs::read_dir(run.dir().join("tensorboard")).unwrap();
    assert_eq!(curves.count(), 1);
}
