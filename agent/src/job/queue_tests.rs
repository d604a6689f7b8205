//! Never over capacity, nobody starved, everybody's share.

use super::*;
use proptest::prelude::*;

fn id(number: usize) -> JobId {
    JobId::parse(&format!("01890a5d-ac96-774b-bcce-{number:012x}")).unwrap()
}

fn name(number: usize) -> Name {
    Name::parse(&format!("p{number}")).unwrap()
}

fn cpus(cpu_millis: u64) -> Amount {
    Amount { cpu_millis, memory_bytes: 1, disk_bytes: 1 }
}

fn rules(cpu_millis: u64) -> Rules {
    Rules {
        capacity: Amount { cpu_millis, memory_bytes: 1 << 30, disk_bytes: 1 << 30 },
        running: 1_000,
        queued: 1_000,
        patience: 4,
        quota: Quota { running: 1_000, queued: 1_000, weight: 1 },
        projects: BTreeMap::new(),
    }
}

fn entry(number: usize, project: usize, needs: Amount) -> Entry {
    let since = UnixNanos(number.try_into().unwrap());
    Entry { id: id(number), project: name(project), priority: 0, since, needs, timeout_ms: None }
}

fn drain(queue: &mut Queue) -> Vec<JobId> {
    std::iter::from_fn(|| queue.next(UnixNanos(0))).collect()
}

#[derive(Debug, Clone)]
enum Do {
    Enter { project: usize, priority: u8, needs: [u64; 3], timeout: Option<u64> },
    Next,
    Free(usize),
    Leave(usize),
    Time(u64),
}

fn deed() -> impl Strategy<Value = Do> {
    prop_oneof![
        4 => (0..4_usize, 0..3_u8, [0..12_u64, 0..12_u64, 0..12_u64], prop::option::of(0..9_u64))
            .prop_map(|(project, priority, needs, timeout)| Do::Enter { project, priority, needs, timeout }),
        4 => Just(Do::Next),
        3 => any::<usize>().prop_map(Do::Free),
        1 => any::<usize>().prop_map(Do::Leave),
        1 => (0..5_u64).prop_map(Do::Time),
    ]
}

fn play(deeds: &[Do], mut look: impl FnMut(&Queue, &[JobId], u64)) -> Vec<Option<JobId>> {
    let whole = Amount { cpu_millis: 10, memory_bytes: 10, disk_bytes: 10 };
    let quota = Quota { running: 3, queued: 6, weight: 1 };
    let mut queue = Queue::new(Rules { capacity: whole, running: 6, queued: 12, quota, ..rules(10) });
    let (mut running, mut waiting, mut answers, mut now) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (number, deed) in deeds.iter().enumerate() {
        match deed {
            Do::Enter { project, priority, needs: [cpu_millis, memory_bytes, disk_bytes], timeout } => {
                let needs =
                    Amount { cpu_millis: *cpu_millis, memory_bytes: *memory_bytes, disk_bytes: *disk_bytes };
                if queue.may_enter(&name(*project), &needs).is_ok() {
                    let since = UnixNanos(now * 1_000_000);
                    let (priority, timeout_ms) = (*priority, *timeout);
                    queue.enter(Entry { priority, since, timeout_ms, ..entry(number, *project, needs) });
                    waiting.push(id(number));
                }
            }
            Do::Next => {
                let next = queue.next(UnixNanos(now * 1_000_000));
                if let Some(id) = &next {
                    waiting.retain(|other| other != id);
                    running.push(id.clone());
                }
                answers.push(next);
            }
            Do::Free(at) if !running.is_empty() => {
                assert!(queue.free(&running.swap_remove(at % running.len())));
            }
            Do::Leave(at) if !waiting.is_empty() => {
                assert!(queue.leave(&waiting.swap_remove(at % waiting.len())));
            }
            Do::Free(_) | Do::Leave(_) => {}
            Do::Time(by) => {
                now += by;
                for id in queue.timed_out(UnixNanos(now * 1_000_000)) {
                    assert!(waiting.contains(&id));
                    waiting.retain(|other| *other != id);
                }
            }
        }
        assert_eq!(queue.queued() as usize, waiting.len());
        look(&queue, &running, now);
    }
    answers
}

proptest! {
    #[test]
    fn running_jobs_never_hold_more_than_the_host_or_their_quota(deeds in prop::collection::vec(deed(), 0..200)) {
        play(&deeds, |queue, running, now| {
            assert!(queue.used().fits(queue.rules.capacity));
            let sum = queue.running.values().fold(Amount::default(), |sum, (_, needs)| sum.plus(*needs));
            assert_eq!(sum, queue.used());
            assert_eq!(queue.running() as usize, running.len());
            assert!(queue.running() <= 6);
            assert!(queue.projects.values().all(|of| of.running <= 3 && of.waiting.len() <= 6));
            assert!(queue.next_timeout().is_some() || queue.deadlines.is_empty(), "at {now}");
        });
    }

    #[test]
    fn same_calls_give_the_same_answers(deeds in prop::collection::vec(deed(), 0..200)) {
        prop_assert_eq!(play(&deeds, |_, _, _| ()), play(&deeds, |_, _, _| ()));
    }

    /// A job as big as the host waits; small ones never stop coming, and one ends whenever one starts.
    #[test]
    fn big_job_is_passed_only_so_often(
        slots in 2..9_u64, big in 1..9_u64, projects in 1..4_usize, ends in prop::collection::vec(any::<usize>(), 100)
    ) {
        let mut queue = Queue::new(rules(slots * 1_000));
        let (patience, whole) = (4, slots as usize);
        let mut number = 0;
        let mut small = |queue: &mut Queue| {
            number += 1;
            queue.enter(entry(number, number % projects, cpus(1_000)));
        };
        (0..whole * 2).for_each(|_| small(&mut queue));
        let mut running = drain(&mut queue);
        prop_assert_eq!(running.len(), whole);
        let big_id = id(900_000);
        queue.enter(Entry { id: big_id.clone(), ..entry(0, 0, cpus(big.clamp(2, slots) * 1_000)) });
        let mut starts = 0;
        for end in ends {
            small(&mut queue);
            if !running.is_empty() {
                queue.free(&running.swap_remove(end % running.len()));
            }
            let started = drain(&mut queue);
            if started.contains(&big_id) {
                return Ok(());
            }
            starts += started.len();
            running.extend(started);
            // As many as wait before it at first; then its turn may come after that of each other project, at the first and
            // at each of those times, and projects may begin a job apart.
            prop_assert!(starts <= whole + (patience + 3) * projects, "{starts} jobs have passed it");
        }
        prop_assert!(false, "it never started");
    }

    /// Projects that always have jobs waiting run the same number, each job's length apart.
    #[test]
    fn shares_of_equal_projects_differ_by_one_job(
        slots in 1..17_usize, projects in 1..6_usize, ends in prop::collection::vec(any::<usize>(), 60)
    ) {
        let mut queue = Queue::new(rules(slots as u64 * 1_000));
        for number in 0..projects * 100 {
            // All of the first project's are older than any of the second's.
            queue.enter(entry(number, number / 100, cpus(1_000)));
        }
        let mut running = drain(&mut queue);
        for end in ends {
            prop_assert_eq!(running.len(), slots);
            let counts = (0..projects).map(|p| queue.projects.get(&name(p)).map_or(0, |of| of.running));
            let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
            prop_assert!(most - least <= 1, "{least} to {most}");
            // One of the project that has most ends, as when jobs are of one length.
            let most: Vec<_> = (0..running.len())
                .filter(|at| queue.projects[&queue.running[&running[*at]].0].running == most)
                .collect();
            let at = most[end % most.len()];
            queue.free(&running.swap_remove(at));
            running.extend(drain(&mut queue));
        }
    }
}

#[test]
fn weight_two_runs_twice_as_much() {
    let mut rules = rules(9_000);
    rules.projects.insert(name(1), Quota { weight: 2, ..rules.quota });
    let mut queue = Queue::new(rules);
    (0..40).for_each(|number| queue.enter(entry(number, number % 2, cpus(1_000))));
    drain(&mut queue);
    assert_eq!((queue.projects[&name(0)].running, queue.projects[&name(1)].running), (3, 6));
}

#[test]
fn priority_and_age_decide_within_a_project_and_nowhere_else() {
    let mut queue = Queue::new(rules(1_000));
    queue.enter(Entry { priority: 1, ..entry(1, 0, cpus(1_000)) });
    queue.enter(Entry { priority: 9, ..entry(3, 0, cpus(1_000)) });
    queue.enter(Entry { priority: 9, ..entry(2, 0, cpus(1_000)) });
    queue.enter(entry(0, 1, cpus(1_000)));
    assert_eq!([1, 2, 3, 0].map(|n| queue.position(&id(n))), [Some(2), Some(0), Some(1), Some(0)]);
    let order: Vec<_> = (0..4)
        .map(|_| {
            let next = queue.next(UnixNanos(0)).unwrap();
            assert_eq!(queue.next(UnixNanos(0)), None);
            queue.free(&next);
            next
        })
        .collect();
    assert_eq!(order[0], id(0), "the oldest job of all decides between projects that run nothing");
    assert_eq!(order[1..], [id(2), id(3), id(1)]);
}

#[test]
fn full_queue_quota_and_host_are_refused_with_a_remedy() {
    let mut rules = rules(1_000);
    rules.queued = 3;
    rules.quota.queued = 2;
    let mut queue = Queue::new(rules);
    let refused = queue.may_enter(&name(0), &cpus(2_000)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "limits.cpus: 2000 is more than this host gives to jobs (1000); ask for less"
    );
    queue.enter(entry(0, 0, cpus(1)));
    queue.enter(entry(1, 0, cpus(1)));
    let refused = queue.may_enter(&name(0), &cpus(1)).unwrap_err();
    assert_eq!(refused.to_string(), "2 jobs of project p0 wait, which is its quota; ask again in 5 s");
    assert!(queue.may_enter(&name(1), &cpus(1)).is_ok());
    queue.enter(entry(2, 1, cpus(1)));
    let refused = queue.may_enter(&name(1), &cpus(1)).unwrap_err();
    assert_eq!(refused.to_string(), "the queue of this host is full; ask again in 5 s");
    assert!(queue.next(UnixNanos(0)).is_some() && queue.may_enter(&name(1), &cpus(1)).is_ok());
}

#[test]
fn place_that_is_promised_counts_until_it_is_redeemed() {
    let mut rules = rules(1_000);
    rules.queued = 3;
    rules.quota.queued = 2;
    let mut queue = Queue::new(rules);
    queue.promise(&name(0), &cpus(1)).unwrap();
    queue.enter(entry(0, 0, cpus(1)));
    let refused = queue.promise(&name(0), &cpus(1)).unwrap_err();
    assert!(matches!(refused, NotQueued::Quota { queued: 2, .. }), "{refused}");
    queue.promise(&name(1), &cpus(1)).unwrap();
    let refused = queue.promise(&name(2), &cpus(1)).unwrap_err();
    assert!(matches!(refused, NotQueued::Full { .. }), "{refused}");
    queue.redeem(&name(0));
    queue.promise(&name(2), &cpus(1)).unwrap();
    // Nothing that was not promised is given back.
    for _ in 0..3 {
        queue.redeem(&name(0));
    }
    assert!(queue.promise(&name(0), &cpus(1)).is_err());
}

#[test]
fn job_that_waits_too_long_is_named_once_and_never_starts() {
    let mut queue = Queue::new(rules(1_000));
    queue.enter(Entry { timeout_ms: Some(5), ..entry(1_000, 0, cpus(1)) });
    assert_eq!(queue.next_timeout(), Some(UnixNanos(5_001_000)));
    assert_eq!(queue.timed_out(UnixNanos(5_000_999)), []);
    assert_eq!(queue.timed_out(UnixNanos(5_001_000)), [id(1_000)]);
    assert_eq!(queue.timed_out(UnixNanos(9_000_000)), []);
    assert_eq!((queue.next(UnixNanos(0)), queue.queued()), (None, 0));
}

#[test]
fn restart_gives_back_what_ran_and_waits_even_beyond_the_capacity() {
    let mut queue = Queue::new(rules(1_000));
    queue.resume(&id(1), &name(0), cpus(800));
    queue.resume(&id(2), &name(0), cpus(800));
    queue.resume(&id(2), &name(0), cpus(800));
    queue.enter(entry(2, 0, cpus(1)));
    queue.enter(entry(3, 0, cpus(1)));
    assert_eq!((queue.running(), queue.queued(), queue.next(UnixNanos(0))), (2, 1, None));
    queue.free(&id(1));
    assert_eq!(queue.next(UnixNanos(0)), Some(id(3)));
    queue.set_rules(rules(0));
    queue.enter(entry(4, 0, cpus(1)));
    assert_eq!(queue.unfit(), [id(4)]);
}
