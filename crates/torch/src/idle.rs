//! How libtorch's threads wait for their next operator.

/// Of OpenMP: `active` spins, `passive` sleeps.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";
/// Of GNU's OpenMP, which libtorch has on Linux: how long it spins.
const SPINS: &str = "GOMP_SPINCOUNT";

/// Lets libtorch's threads sleep while they have nothing to do, in this process and those that it starts, unless the environment says
/// how they wait. Returns whether it has.
///
/// They spin otherwise, for milliseconds after each of libtorch's operators, on cores that the kernels of other crates need; and few
/// of a step's operators are libtorch's.
///
/// It changes the environment, which is sound only where no other thread can read it meanwhile. So a program calls this before
/// anything else, and it does nothing in a process that has more threads than one.
pub fn let_idle_threads_sleep() -> bool {
    let is_given = [WAIT_POLICY, SPINS]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if is_given || threads != 1 {
        return false;
    }
    // SAFETY: this thread is the only one of the process, so nobody reads or writes the environment at the same time.
    unsafe { std::env::set_var(WAIT_POLICY, "passive") };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_several_threads_stays() {
        // Tests run beside others.
        let before = std::env::var_os(WAIT_POLICY);
        std::thread::scope(|scope| {
            let (end, waits) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || waits.recv());
            assert!(!let_idle_threads_sleep());
            drop(end);
        });
        assert_eq!(std::env::var_os(WAIT_POLICY), before);
    }
}
