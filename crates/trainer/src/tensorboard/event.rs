//! TensorFlow's `Event` message (tensorflow/core/util/event.proto), as far as curves need it, in protobuf's wire format.

/// What a file begins with.
const VERSION: &[u8] = b"brain.Event:2";

// Fields of Event.
const WALL_TIME: u64 = 1;
const STEP: u64 = 2;
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;
// Of Summary, and of Summary.Value.
const VALUE: u64 = 1;
const TAG: u64 = 1;
const SIMPLE_VALUE: u64 = 2;
// Of SessionLog, and the status START.
const STATUS: u64 = 1;
const START: u64 = 1;

// Wire types.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// The first event of a file.
pub(super) fn version(time: f64) -> Vec<u8> {
    let mut event = at(time, 0);
    bytes(&mut event, FILE_VERSION, VERSION);
    event
}

/// From here on, what was read before of step `step` and later ones no longer holds.
pub(super) fn session_start(time: f64, step: u64) -> Vec<u8> {
    let mut log = Vec::new();
    number(&mut log, STATUS, START);
    let mut event = at(time, step);
    bytes(&mut event, SESSION_LOG, &log);
    event
}

/// One point of each curve, at the same step.
pub(super) fn scalars(time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut one = Vec::new();
        bytes(&mut one, TAG, tag.as_bytes());
        key(&mut one, SIMPLE_VALUE, FIXED_32);
        one.extend((*value as f32).to_le_bytes());
        bytes(&mut summary, VALUE, &one);
    }
    let mut event = at(time, step);
    bytes(&mut event, SUMMARY, &summary);
    event
}

/// The step of an event that one of these functions has made; 0 where there is none.
pub(super) fn step_of(event: &[u8]) -> u64 {
    // The time comes first: a key of one byte, and eight of the number.
    let mut rest = event.get(9..).unwrap_or_default().iter();
    if rest.next().copied().map(u64::from) != Some(STEP << 3 | VARINT) {
        return 0;
    }
    let mut step = 0;
    for (byte, shift) in rest.zip((0..64).step_by(7)) {
        step |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    step
}

fn at(time: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, WALL_TIME, FIXED_64);
    event.extend(time.to_le_bytes());
    if step > 0 {
        number(&mut event, STEP, step);
    }
    event
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, VARINT);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, BYTES);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
