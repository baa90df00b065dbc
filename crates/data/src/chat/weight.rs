//! What a value costs that is walked through: written down, compared, or hashed.
//!
//! A template may build, from little, what is endless to walk through: a list that names one text a million times, lists that
//! each name the one before twice, or a namespace that holds itself. minijinja's fuel pays for what was created; so whatever
//! walks is paid for here, before it does.

use minijinja::value::{DynObject, ObjectRepr, Value};
use minijinja::{Error, ErrorKind, State};

/// Bytes that pay for an instruction: minijinja's own rate.
pub(super) const BYTES_OF_FUEL: u64 = 64;

/// What looking at an item costs, in bytes: minijinja's own rate.
const ITEM_BYTES: u64 = 32;

/// What messages and tools are never nested in.
pub(super) const MAX_DEPTH: usize = 200;

/// What a template may still create.
pub(super) fn bytes_left(state: &State) -> u64 {
    let left = state.fuel_levels().map(|(_, left)| left);
    left.map_or(u64::MAX, |left| left.saturating_mul(BYTES_OF_FUEL))
}

pub(super) fn out_of_fuel() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}

/// Pays for a walk through lists and maps. What is no list or map is free: a text costs what it did when it was made.
pub(super) fn pay(state: &State, value: &Value) -> Result<(), Error> {
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    let mut walk = Walk::new(state, true);
    walk.through(object, MAX_DEPTH)?;
    walk.pay(state)
}

/// Pays for looking two values through until they differ.
pub(super) fn pay_to_compare(state: &State, a: &Value, b: &Value) -> Result<(), Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return pay_for_bytes(state, a.len().min(b.len()));
    }
    match a.as_object().is_some() && b.as_object().is_some() {
        // The shorter of the two decides where the comparison ends.
        true if a.len() > b.len() => pay(state, b),
        true => pay(state, a),
        false => Ok(()),
    }
}

/// Pays for looking a key up.
pub(super) fn pay_for_key(state: &State, key: &Value) -> Result<(), Error> {
    match key.as_str() {
        Some(text) => pay_for_bytes(state, text.len()),
        None => pay(state, key),
    }
}

fn pay_for_bytes(state: &State, bytes: usize) -> Result<(), Error> {
    match bytes as u64 / BYTES_OF_FUEL {
        0 => Ok(()),
        fuel => state.consume_fuel(fuel),
    }
}

/// Refuses what a namespace must not hold: another or itself, or what may have one. Such a circle is never dropped.
pub(super) fn check_held(state: &State, value: &Value) -> Result<(), Error> {
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    let mut walk = Walk::new(state, false);
    walk.through(object, MAX_DEPTH)?;
    walk.pay(state)
}

struct Walk {
    /// Bytes that may still be seen.
    left: u64,
    seen: u64,
    /// Texts count, and namespaces may be there.
    reads: bool,
}

impl Walk {
    fn new(state: &State, reads: bool) -> Self {
        Self {
            left: bytes_left(state),
            seen: 0,
            reads,
        }
    }

    fn through(&mut self, object: &DynObject, depth: usize) -> Result<(), Error> {
        if depth == 0 {
            let problem = "a value is nested too deeply, or holds itself";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        // These types are private, their names are not. A loop has the items that are still to come.
        let is_holder = ["::Namespace", "::Loop"]
            .iter()
            .any(|name| object.type_name().ends_with(name));
        if !self.reads && is_holder {
            let problem = "a namespace cannot hold a namespace or a loop";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        match object.repr() {
            ObjectRepr::Map => {
                for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                    self.item(&key, depth)?;
                    self.item(&value, depth)?;
                }
            }
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                for value in object.try_iter().into_iter().flatten() {
                    self.item(&value, depth)?;
                }
            }
            // A macro, of which the name is written.
            _ => {}
        }
        Ok(())
    }

    fn item(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let text = match self.reads {
            true => value.as_str().map_or(0, str::len),
            false => 0,
        };
        self.seen += ITEM_BYTES + text as u64;
        if self.seen >= self.left {
            return Err(out_of_fuel());
        }
        match value.as_object() {
            Some(object) => self.through(object, depth - 1),
            None => Ok(()),
        }
    }

    fn pay(&self, state: &State) -> Result<(), Error> {
        state.consume_fuel(self.seen / BYTES_OF_FUEL)
    }
}
