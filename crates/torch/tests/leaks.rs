//! Calls of every sort leave no memory behind. In a process of its own, since it looks at the whole process.

use tandem_torch::{Device, Kind, Tensor};

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn no_call_leaks() {
    const CALLS: u64 = 20_000;
    let on = |kind| (kind, Device::Cpu);
    let (t, half) = (
        Tensor::ones([8, 8], on(Kind::Float)),
        Tensor::ones([8, 8], on(Kind::BFloat16)),
    );
    let index = Tensor::from_slice(&[0i64, 1, 2]);
    let some = Tensor::ones([3, 8], on(Kind::Float));
    let calls: [(&str, &dyn Fn()); 11] = [
        ("new", &|| drop(Tensor::empty([64], on(Kind::Float)))),
        ("direct", &|| drop(&t + &t)),
        ("view", &|| drop(t.narrow(0, 1, 2).tr())),
        ("conversion", &|| drop(half.to_kind(Kind::Float))),
        ("dispatcher", &|| drop(t.silu())),
        ("a number", &|| drop(t.lt(2.0))),
        ("optional", &|| drop(t.sum(Kind::Double))),
        ("optional list", &|| {
            drop(t.sum_dims(&[0], false, Kind::Float))
        }),
        ("tensor list", &|| drop(Tensor::stack(&[&t, &t], 0))),
        ("optional tensors", &|| t.index_add_(0, &index, &some)),
        ("host", &|| drop(t.to_vec::<f32>())),
    ];
    for (name, call) in calls {
        (0..CALLS / 10).for_each(|_| call());
        let before = resident_kib();
        (0..CALLS).for_each(|_| call());
        let grown = resident_kib().saturating_sub(before);
        // One lost box of 8 bytes takes 32 of the allocator's: 625 KiB.
        assert!(grown < 400, "{name}: {grown} KiB more after {CALLS} calls");
    }
}
