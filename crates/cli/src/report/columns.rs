//! Numbers of many steps, as columns, in no more points than a screen can show.

use serde::Serialize;
use serde_json::Value;

/// More points than this say nothing more, and make the page slow.
const MAX_POINTS: usize = 4000;

/// Numbers of steps; what a line did not have, or was not finite, is none.
#[derive(Debug, Default, Serialize)]
pub struct Steps {
    /// The optimizer step.
    pub step: Vec<u64>,
    /// Tokens so far.
    pub tokens: Vec<f64>,
    /// Seconds of training so far.
    pub elapsed: Vec<f64>,
    pub loss: Vec<Option<f64>>,
    pub lr: Vec<Option<f64>>,
    pub grad_norm: Vec<Option<f64>>,
    pub tokens_per_s: Vec<Option<f64>>,
    pub mfu: Vec<Option<f64>>,
    pub step_time_s: Vec<Option<f64>>,
    /// The largest of all ranks.
    pub memory_mb: Vec<Option<f64>>,
    /// What the busiest expert of a layer got over what the mean of them did: the largest of all layers.
    pub expert_load: Vec<Option<f64>>,
    /// The same, the mean of all layers.
    pub expert_load_mean: Vec<Option<f64>>,
    /// Experts of all layers that got no token.
    pub idle_experts: Vec<Option<f64>>,
    /// What keeps them in balance, before its coefficient.
    pub aux_loss: Vec<Option<f64>>,
    /// Layer by layer, in the last step that says so.
    pub experts: Option<Experts>,
    /// When the last step ended, in seconds since 1970.
    #[serde(skip)]
    pub last_time: Option<f64>,
}

/// What the experts of a mixture's layers got in a step.
#[derive(Debug, Serialize)]
pub struct Experts {
    /// The step.
    pub step: u64,
    /// For each layer with experts: the tokens of the busiest over the mean of all.
    pub max_over_mean: Vec<f64>,
    /// Experts of all layers that got no token.
    pub idle: u64,
}

/// More layers than any model has: what says so is damaged.
const MAX_LAYERS: usize = 10_000;

impl Experts {
    /// What a step's `experts` say; `None` where a number is missing or makes no sense.
    fn of(step: u64, said: &Value) -> Option<Self> {
        let layers = said.get("max_over_mean")?.as_array()?;
        let of_layer = |value: &Value| value.as_f64().filter(|load| load.is_finite());
        let max_over_mean: Option<Vec<f64>> = layers.iter().map(of_layer).collect();
        Some(Self {
            step,
            max_over_mean: max_over_mean.filter(|all| (1..=MAX_LAYERS).contains(&all.len()))?,
            idle: said.get("idle")?.as_u64()?,
        })
    }

    /// The layer whose load is the furthest from even, counted among those with experts, and that load.
    fn worst(&self) -> (usize, f64) {
        let layers = self.max_over_mean.iter().copied().enumerate();
        layers
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or_default()
    }

    /// A line for the reader.
    pub fn line(&self) -> String {
        let (layer, load) = self.worst();
        let idle = match self.idle {
            0 => "every expert has got some".to_owned(),
            1 => "1 expert has got none".to_owned(),
            idle => format!("{idle} experts have got none"),
        };
        format!(
            "tokens per expert at step {}: at most {load:.2} x the mean (layer {layer} of the {} with experts); {idle}",
            self.step,
            self.max_over_mean.len()
        )
    }
}

/// Numbers of evaluations.
#[derive(Debug, Default, Serialize)]
pub struct Evaluations {
    pub step: Vec<u64>,
    pub tokens: Vec<f64>,
    pub elapsed: Vec<f64>,
    pub eval_loss: Vec<Option<f64>>,
    pub perplexity: Vec<Option<f64>>,
}

/// A finite number of a line.
fn number(line: &Value, name: &str) -> Option<f64> {
    line.get(name)?.as_f64().filter(|value| value.is_finite())
}

impl Steps {
    /// Adds a step. One that comes again replaces what was said of it and of later ones.
    pub fn push(&mut self, step: u64, line: &Value) {
        let kept = self.step.partition_point(|before| *before < step);
        self.truncate(kept);
        let seconds = number(line, "step_time_s");
        let before = self.elapsed.last().copied().unwrap_or_default();
        let tokens = number(line, "tokens_seen").or(self.tokens.last().copied());
        let memory = line.get("peak_memory_mb").and_then(Value::as_array);
        let memory =
            memory.and_then(|ranks| ranks.iter().filter_map(Value::as_f64).reduce(f64::max));
        self.step.push(step);
        self.tokens.push(tokens.unwrap_or_default());
        self.elapsed.push(before + seconds.unwrap_or_default());
        self.loss.push(number(line, "loss"));
        self.lr.push(number(line, "lr"));
        self.grad_norm.push(number(line, "grad_norm"));
        self.tokens_per_s.push(number(line, "tokens_per_s"));
        self.mfu.push(number(line, "mfu"));
        self.step_time_s.push(seconds);
        self.memory_mb.push(memory);
        let said = line.get("experts");
        let experts = said.and_then(|said| Experts::of(step, said));
        self.expert_load
            .push(experts.as_ref().map(|it| it.worst().1));
        let mean =
            |it: &Experts| it.max_over_mean.iter().sum::<f64>() / it.max_over_mean.len() as f64;
        self.expert_load_mean.push(experts.as_ref().map(mean));
        self.idle_experts
            .push(experts.as_ref().map(|it| it.idle as f64));
        self.aux_loss
            .push(said.and_then(|said| number(said, "aux_loss")));
        self.experts = experts.or(self.experts.take());
        self.last_time = number(line, "time").or(self.last_time);
    }

    fn truncate(&mut self, length: usize) {
        self.step.truncate(length);
        self.tokens.truncate(length);
        self.elapsed.truncate(length);
        for column in self.measured() {
            column.truncate(length);
        }
    }

    fn measured(&mut self) -> [&mut Vec<Option<f64>>; 11] {
        [
            &mut self.loss,
            &mut self.lr,
            &mut self.grad_norm,
            &mut self.tokens_per_s,
            &mut self.mfu,
            &mut self.step_time_s,
            &mut self.memory_mb,
            &mut self.expert_load,
            &mut self.expert_load_mean,
            &mut self.idle_experts,
            &mut self.aux_loss,
        ]
    }

    /// Tokens and seconds up to a step.
    pub fn place(&self, step: u64) -> (f64, f64) {
        let at = self.step.partition_point(|known| *known < step);
        let at = at.min(self.step.len().saturating_sub(1));
        let of = |column: &[f64]| column.get(at).copied().unwrap_or_default();
        (of(&self.tokens), of(&self.elapsed))
    }

    /// Puts steps together until they are few enough: each point is the mean of as many. Returns of how many.
    pub fn thin_out(&mut self) -> usize {
        let each = self.step.len().div_ceil(MAX_POINTS);
        if each <= 1 {
            return 1;
        }
        let last = |column: &[f64]| {
            column
                .chunks(each)
                .filter_map(|it| it.last().copied())
                .collect()
        };
        self.tokens = last(&self.tokens);
        self.elapsed = last(&self.elapsed);
        let steps = self.step.chunks(each);
        self.step = steps.filter_map(|it| it.last().copied()).collect();
        for column in self.measured() {
            *column = column.chunks(each).map(mean).collect();
        }
        each
    }
}

impl Evaluations {
    /// Adds an evaluation; one that comes again replaces what was said of it and of later ones.
    pub fn push(&mut self, step: u64, line: &Value) {
        let kept = self.step.partition_point(|before| *before < step);
        self.step.truncate(kept);
        self.eval_loss.truncate(kept);
        self.perplexity.truncate(kept);
        self.step.push(step);
        self.eval_loss.push(number(line, "eval_loss"));
        self.perplexity.push(number(line, "perplexity"));
    }

    /// Finds their places on the other axes.
    pub fn place(&mut self, steps: &Steps) {
        (self.tokens, self.elapsed) = self.step.iter().map(|step| steps.place(*step)).unzip();
    }
}

fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn steps(numbers: impl IntoIterator<Item = u64>) -> Steps {
        let mut steps = Steps::default();
        for step in numbers {
            let line = json!({
                "step": step, "loss": step as f64, "step_time_s": 0.5, "tokens_seen": 10 * step, "peak_memory_mb": [1.0, 3.0, 2.0],
                "lr": null, "time": 100 + step
            });
            steps.push(step, &line);
        }
        steps
    }

    #[test]
    fn a_step_that_comes_again_counts_once() {
        let steps = steps([1, 2, 3, 2, 3, 4]);
        assert_eq!(steps.step, [1, 2, 3, 4]);
        assert_eq!(steps.elapsed, [0.5, 1.0, 1.5, 2.0]);
        assert_eq!(steps.memory_mb, [Some(3.0); 4]);
        assert_eq!(steps.lr, [None; 4]);
        assert_eq!(
            (steps.place(3), steps.place(99)),
            ((30.0, 1.5), (40.0, 2.0))
        );
        assert_eq!(steps.last_time, Some(104.0));
        let mut evaluations = Evaluations::default();
        for step in [2, 4, 4] {
            evaluations.push(step, &json!({"eval_loss": 1.0}));
        }
        evaluations.place(&steps);
        assert_eq!(
            (evaluations.step.len(), &*evaluations.tokens),
            (2, &[20.0, 40.0][..])
        );
        assert_eq!(Steps::default().place(1), (0.0, 0.0));
    }

    #[test]
    fn the_experts_load_is_that_of_the_worst_layer() {
        let mut steps = Steps::default();
        let said = [
            json!({"aux_loss": 1.25, "max_over_mean": [1.5, 3.0, 1.5], "idle": 2}),
            json!({"aux_loss": 1.5, "max_over_mean": [1.0, "x"], "idle": 0}),
            json!({"max_over_mean": [], "idle": 0}),
            json!(7),
        ];
        for (step, experts) in (1..).zip(said) {
            steps.push(step, &json!({"loss": 1.0, "experts": experts}));
        }
        assert_eq!(steps.expert_load, [Some(3.0), None, None, None]);
        assert_eq!(steps.expert_load_mean, [Some(2.0), None, None, None]);
        assert_eq!(steps.idle_experts, [Some(2.0), None, None, None]);
        assert_eq!(steps.aux_loss, [Some(1.25), Some(1.5), None, None]);
        assert_eq!(
            steps.experts.unwrap().line(),
            "tokens per expert at step 1: at most 3.00 x the mean (layer 1 of the 3 with experts); 2 experts have got none"
        );
    }

    #[test]
    fn very_many_steps_become_means_of_some() {
        let mut few = steps(1..=10);
        assert_eq!((few.thin_out(), few.step.len()), (1, 10));
        let mut many = steps(1..=8100);
        assert_eq!((many.thin_out(), many.step.len()), (3, 2700));
        assert_eq!(
            (many.step[0], many.loss[0], many.tokens[0]),
            (3, Some(2.0), 30.0)
        );
        assert_eq!(many.lr[0], None);
        assert!(many.measured().iter().all(|column| column.len() == 2700));
    }
}
