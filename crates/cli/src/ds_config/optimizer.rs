//! The sections `optimizer` and `scheduler`.

use serde_json::Value;

use super::Flags;
use super::section::{Said, Section, Setting};

/// The learning rate of the optimizer.
pub type Rate = Setting<f64>;

/// AdamW, under the names that DeepSpeed has for it. Returns its learning rate, which a scheduler may replace.
pub fn optimizer(file: &Section<'_>, flags: &mut Flags) -> Result<Option<Rate>, String> {
    let section = file.section("optimizer")?;
    let name = match section.text("type")?.value {
        Said::Value(name) => name,
        _ if file.has("optimizer") => return Err("optimizer has no type".to_owned()),
        _ => return Ok(None),
    };
    let params = section.section("params")?;
    let is_adam = match name.to_ascii_lowercase().as_str() {
        "adamw" => false,
        "adam" => true,
        _ => {
            return Err(format!(
                "optimizer.type is {name:?}; there is AdamW (also Adam with adam_w_mode, which is the same)"
            ));
        }
    };
    let decay = params.number("weight_decay")?;
    let adds_to_gradient = is_adam && params.truth("adam_w_mode")?.known() == Some(false);
    if adds_to_gradient && decay.value != Said::Value(0.0) && decay.value != Said::Nothing {
        return Err(
            "optimizer.params.adam_w_mode is false: weight decay would be added to the gradient (L2), and here it is decoupled \
             (AdamW); set adam_w_mode to true, or weight_decay to 0"
                .to_owned(),
        );
    }
    for (key, only) in [
        ("bias_correction", true),
        ("amsgrad", false),
        ("maximize", false),
    ] {
        if params
            .truth(key)?
            .known()
            .is_some_and(|value| value != only)
        {
            return Err(format!("{} must be {only}", params.at(key)));
        }
    }
    // DeepSpeed's own kernels decay nothing unless they are told to; torch's do.
    let is_torch = params.truth("torch_adam")?.known() == Some(true);
    let default_decay = match is_torch && !is_adam {
        true => 0.01,
        false => 0.0,
    };
    flags.take("weight_decay", decay.json(), default_decay.into());
    flags.take("adam_eps", params.number("eps")?.json(), 1e-8.into());
    betas(&params, flags)?;
    Ok(Some(params.number("lr")?))
}

fn betas(params: &Section<'_>, flags: &mut Flags) -> Result<(), String> {
    let betas = params.setting("betas");
    let names = ["adam_beta1", "adam_beta2"];
    match betas.value {
        Said::Auto => {}
        Said::Nothing => {
            flags.leave(names[0], 0.9);
            flags.leave(names[1], 0.999);
        }
        Said::Value(value) => {
            let pair = value.as_array().filter(|pair| pair.len() == 2);
            let pair = pair.ok_or_else(|| {
                format!("{} is {value}; it must be a list of two numbers", betas.key)
            })?;
            for (flag, beta) in names.into_iter().zip(pair) {
                match beta {
                    Value::Number(number) => flags.say(flag, number.clone(), &betas.key),
                    Value::String(auto) if auto == "auto" => {}
                    other => return Err(format!("{} has {other}, which is no number", betas.key)),
                }
            }
        }
    }
    Ok(())
}

/// One of DeepSpeed's schedules whose formulas we have. `rate` is the optimizer's.
pub fn scheduler(file: &Section<'_>, rate: Option<Rate>, flags: &mut Flags) -> Result<(), String> {
    let section = file.section("scheduler")?;
    let has_rate = rate.is_some();
    // As torch's and DeepSpeed's AdamW.
    let of_optimizer = |flags: &mut Flags| {
        if let Some(rate) = rate.clone() {
            flags.take("learning_rate", rate.json(), 1e-3.into());
        }
    };
    let name = match section.text("type")?.value {
        Said::Value(name) => name,
        Said::Auto => {
            of_optimizer(flags);
            return Ok(());
        }
        Said::Nothing if file.has("scheduler") => return Err("scheduler has no type".to_owned()),
        Said::Nothing => {
            of_optimizer(flags);
            if has_rate {
                flags.leave("lr_scheduler", "constant");
            }
            return Ok(());
        }
    };
    let params = section.section("params")?;
    let schedule = match name.as_str() {
        "WarmupLR" => "warmup_lr",
        "WarmupDecayLR" => "warmup_decay_lr",
        "WarmupCosineLR" => "warmup_cosine_lr",
        _ => {
            return Err(format!(
                "scheduler.type is {name:?}; there are WarmupLR, WarmupDecayLR and WarmupCosineLR"
            ));
        }
    };
    flags.say("lr_scheduler", schedule, &section.at("type"));
    let steps = params.whole("warmup_num_steps")?;
    if steps.value == Said::Value(0) {
        return Err(format!("{} is 0; it must be at least 1", steps.key));
    }
    flags.take("warmup_steps", steps.json(), 1000.into());
    let kind = params.text("warmup_type")?;
    if let Said::Value(kind) = &kind.value
        && !["log", "linear"].contains(&kind.as_str())
    {
        return Err(format!(
            "scheduler.params.warmup_type is {kind:?}; it must be log or linear"
        ));
    }
    flags.take("warmup_type", kind.json(), "log".into());
    if params
        .number("last_batch_iteration")?
        .known()
        .is_some_and(|step| step != -1.0)
    {
        return Err(format!(
            "{} must be -1: a run that goes on knows its step (--resume_from)",
            params.at("last_batch_iteration")
        ));
    }
    if schedule != "warmup_lr" {
        let total = params.whole("total_num_steps")?;
        if let Said::Value(steps) = total.value {
            flags.say("schedule_steps", steps, &total.key);
        }
    }
    if schedule == "warmup_cosine_lr" {
        of_optimizer(flags);
        flags.take(
            "warmup_min_ratio",
            params.number("warmup_min_ratio")?.json(),
            0.0.into(),
        );
        flags.take(
            "min_lr_ratio",
            params.number("cos_min_ratio")?.json(),
            0.0001.into(),
        );
        return Ok(());
    }
    let peak = params.number("warmup_max_lr")?;
    let least = params.number("warmup_min_lr")?;
    let highest = match peak.value {
        Said::Value(rate) => Some(rate),
        // The rate of the optimizer, where there is one.
        Said::Nothing if schedule == "warmup_lr" => rate.clone().and_then(Setting::known),
        Said::Nothing => Some(1e-3),
        Said::Auto => None,
    };
    match peak.value {
        Said::Nothing if schedule == "warmup_lr" => of_optimizer(flags),
        _ => flags.take("learning_rate", peak.json(), 1e-3.into()),
    }
    let least_rate = match least.value {
        Said::Value(rate) => rate,
        Said::Nothing | Said::Auto => return Ok(()),
    };
    match highest {
        _ if least_rate == 0.0 => flags.say("warmup_min_ratio", 0.0, &least.key),
        Some(highest) if highest > 0.0 && (0.0..=highest).contains(&least_rate) => {
            flags.say("warmup_min_ratio", least_rate / highest, &least.key);
        }
        Some(highest) => {
            return Err(format!(
                "{} is {least_rate}; it must be from 0 to warmup_max_lr, {highest}",
                least.key
            ));
        }
        None => {
            return Err(format!(
                "{} is {least_rate}, and the file does not say of which warmup_max_lr that is a part; write that into it, or \
                 leave both to the flags (\"auto\", --learning_rate, --warmup_min_ratio)",
                least.key
            ));
        }
    }
    Ok(())
}
