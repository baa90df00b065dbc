//! The thread that trains is one of the threads that compute, whatever other threads have made of rayon's global pool.

use tandem_tensor::device;

#[test]
fn who_sets_the_threads_computes_with_them() {
    // As the preparation of data does, on all cores.
    let elsewhere = rayon::ThreadPoolBuilder::new()
        .num_threads(7)
        .build_global();
    elsewhere.unwrap();
    assert_eq!(
        (rayon::current_num_threads(), rayon::current_thread_index()),
        (7, None)
    );
    for (threads, rank) in [(1, "one"), (3, "three")] {
        let trains = std::thread::Builder::new().name(rank.to_owned());
        let trains = trains.spawn(move || {
            device::set_threads(threads);
            assert_eq!(rayon::current_num_threads(), threads);
            assert_eq!(rayon::current_thread_index(), Some(0));
            // A part that waits for all others ends only where all run at once, this thread among them.
            let all = std::sync::Barrier::new(threads);
            let names = rayon::broadcast(|_| {
                all.wait();
                std::thread::current().name().map(str::to_owned)
            });
            assert!(names.contains(&Some(rank.to_owned())), "{names:?}");
        });
        trains.unwrap().join().unwrap();
    }
}
