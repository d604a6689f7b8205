//! What is used stays, what nobody needs goes, what is damaged is found and moved aside.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity
)]

mod common;

use ampoule_spec::wire::Content;
use ampoule_spec::{Blake3, Collect, Collected, HowRead, ReadPolicy, UnixNanos};
use ampoule_store::{Budget, Checked, Lease, Limits, Needs, StoreError};
use common::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

fn lease(world: &World, content: &Content) -> Lease {
    let object = world.store.tree(content).unwrap().unwrap().blake3;
    world.store.lease(object).unwrap().unwrap()
}

fn check(world: &World, lease: &Lease, policy: ReadPolicy) -> Checked {
    lease.check(policy, Budget::OBJECT, world.store.owner(), Limits::default()).unwrap()
}

fn how(checked: &Checked) -> Option<HowRead> {
    match checked {
        Checked::Sound(read) => Some(read.how),
        Checked::Damaged(_) => None,
    }
}

fn now() -> UnixNanos {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixNanos(u64::try_from(now.as_nanos()).unwrap())
}

fn collect(world: &World, max_bytes: Option<u64>, kept: &[Blake3]) -> Collected {
    let wanted = Collect { max_bytes, ..Collect::default() };
    world.store.collect(&wanted, &kept.iter().copied().collect(), now(), &mut |_| Ok(())).unwrap()
}

/// Says that an object was used so long ago.
fn used_before(object: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    fs::File::open(object).unwrap().set_modified(time).unwrap();
}

fn object_dir(world: &World, content: &Content) -> PathBuf {
    world.tree(content).parent().unwrap().to_owned()
}

fn names(dir: PathBuf) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Makes a change look as if the kernel had not noticed it: nothing is newer than the object's description.
fn behind_the_kernels_back(object: &Path, change: impl FnOnce()) {
    std::thread::sleep(Duration::from_millis(20));
    change();
    std::thread::sleep(Duration::from_millis(20));
    fs::File::open(object.join("meta.json")).unwrap().set_modified(SystemTime::now()).unwrap();
}

#[test]
fn each_policy_reads_as_much_as_it_says() {
    let world = World::new();
    let source = tar(&[dir("d/"), file("d/f", "12345"), file("g", "1"), symlink("l", "d")]);
    world.archive(&source).unwrap();
    let lease = lease(&world, &archive(&source));
    for (policy, expected, bytes) in [
        (ReadPolicy::Always, HowRead::All, 6),
        (ReadPolicy::Sampled, HowRead::Sample, 6),
        (ReadPolicy::Suspicion, HowRead::Attributes, 0),
    ] {
        match check(&world, &lease, policy) {
            Checked::Sound(read) => assert_eq!((read.how, read.bytes), (expected, bytes)),
            other => panic!("{policy:?}: {other:?}"),
        }
    }
}

#[test]
fn every_change_that_the_kernel_notices_is_found_by_every_policy() {
    use std::os::unix::fs::PermissionsExt;
    let changes: [(&str, &dyn Fn(&Path)); 7] = [
        ("content", &|root| fs::write(root.join("d/f"), "y").unwrap()),
        ("mode", &|root| fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o755)).unwrap()),
        ("more", &|root| fs::write(root.join("d/new"), "").unwrap()),
        ("fewer", &|root| fs::remove_file(root.join("d/f")).unwrap()),
        ("another", &|root| {
            fs::write(root.join("d/g"), "x").unwrap();
            fs::rename(root.join("d/g"), root.join("d/f")).unwrap();
        }),
        ("root", &|root| fs::write(root.join("new"), "").unwrap()),
        ("target", &|root| {
            fs::remove_file(root.join("l")).unwrap();
            std::os::unix::fs::symlink("/", root.join("l")).unwrap();
        }),
    ];
    for policy in [ReadPolicy::Always, ReadPolicy::Sampled, ReadPolicy::Suspicion] {
        for (what, change) in changes {
            let world = World::new();
            let source = tar(&[dir("d/"), file("d/f", "x"), symlink("l", "d")]);
            world.archive(&source).unwrap();
            let lease = lease(&world, &archive(&source));
            assert!(how(&check(&world, &lease, policy)).is_some());
            std::thread::sleep(Duration::from_millis(20));
            change(&world.tree(&archive(&source)));
            let found = check(&world, &lease, policy);
            assert!(matches!(found, Checked::Damaged(_)), "{policy:?} {what}: {found:?}");
            // Having looked makes nothing sound.
            let again = check(&world, &lease, ReadPolicy::Suspicion);
            assert!(matches!(again, Checked::Damaged(_)), "{policy:?} {what}, again: {again:?}");
        }
    }
}

#[test]
fn bytes_that_changed_unnoticed_are_found_by_their_digest_alone() {
    let world = World::new();
    let source = tar(&[file("f", "x")]);
    world.archive(&source).unwrap();
    let root = world.tree(&archive(&source));
    let time = fs::metadata(root.join("f")).unwrap().modified().unwrap();
    behind_the_kernels_back(root.parent().unwrap(), || {
        fs::write(root.join("f"), "y").unwrap();
        fs::File::open(root.join("f")).unwrap().set_modified(time).unwrap();
    });
    let lease = lease(&world, &archive(&source));
    assert_eq!(how(&check(&world, &lease, ReadPolicy::Suspicion)), Some(HowRead::Attributes));
    assert_eq!(how(&check(&world, &lease, ReadPolicy::Sampled)), None);
    assert_eq!(how(&check(&world, &lease, ReadPolicy::Always)), None);
}

#[test]
fn object_that_only_looks_changed_is_read_once_and_used() {
    let world = World::new();
    let source = tar(&[file("f", "x")]);
    world.archive(&source).unwrap();
    let root = world.tree(&archive(&source));
    std::thread::sleep(Duration::from_millis(20));
    // As after the state directory was copied to another disk.
    let time = fs::metadata(root.join("f")).unwrap().modified().unwrap();
    fs::File::open(root.join("f")).unwrap().set_modified(time).unwrap();
    let lease = lease(&world, &archive(&source));
    assert_eq!(how(&check(&world, &lease, ReadPolicy::Sampled)), Some(HowRead::All));
    assert_eq!(how(&check(&world, &lease, ReadPolicy::Sampled)), Some(HowRead::Sample));
}

#[test]
fn sample_of_a_large_tree_is_bounded() {
    let world = World::new();
    let mut entries: Vec<H> = (0..500).map(|n| file(format!("f{n}"), vec![b'x'; 10_000])).collect();
    entries.push(file("large", vec![7; 3 << 20]));
    let source = tar(&entries);
    world.archive(&source).unwrap();
    let lease = lease(&world, &archive(&source));
    match check(&world, &lease, ReadPolicy::Sampled) {
        Checked::Sound(read) => assert!(read.files == 16 && read.bytes <= 1 << 20, "{read:?}"),
        other => panic!("{other:?}"),
    }
    let share = Budget::OBJECT.share(100);
    let read = lease.check(ReadPolicy::Sampled, share, world.store.owner(), Limits::default()).unwrap();
    assert!(matches!(read, Checked::Sound(read) if read.files == 2 && read.bytes <= 64 << 10), "{read:?}");
}

#[test]
fn damaged_description_or_list_of_files_is_damage() {
    for name in ["meta.json", "files", "paths"] {
        for change in [b"".as_slice(), b"{}"] {
            let world = World::new();
            let source = tar(&[file("f", "x")]);
            world.archive(&source).unwrap();
            let dir = object_dir(&world, &archive(&source));
            fs::write(dir.join(name), change).unwrap();
            let lease = lease(&world, &archive(&source));
            for policy in [ReadPolicy::Always, ReadPolicy::Sampled] {
                let found = check(&world, &lease, policy);
                assert!(matches!(found, Checked::Damaged(_)), "{name} {policy:?}: {found:?}");
            }
        }
    }
}

#[test]
fn damaged_object_is_moved_aside_and_comes_back_by_an_import() {
    let world = World::new();
    let source = tar(&[file("f", "x")]);
    let content = archive(&source);
    world.archive(&source).unwrap();
    let used = lease(&world, &content);
    world.store.quarantine(used.object(), "a reason").unwrap();
    assert_eq!(world.store.find(&content).unwrap(), None);
    assert_eq!(world.store.needs(&content).unwrap(), Needs::Missing);
    let aside = names(world.path("store/quarantine"));
    assert_eq!(aside.len(), 1);
    let finding =
        fs::read_to_string(world.path("store/quarantine").join(&aside[0]).join("damaged.json")).unwrap();
    assert!(finding.contains("a reason"), "{finding}");
    // Who uses it still sees it.
    assert!(matches!(check(&world, &used, ReadPolicy::Suspicion), Checked::Damaged(_)));
    world.archive(&source).unwrap();
    assert!(world.store.verify(&content).unwrap());
    // What was damaged stays where it is, and a second finding of the same object has its own place.
    world.store.quarantine_leased(&used, "again").unwrap();
    assert!(world.store.find(&content).unwrap().is_some(), "the new object is another one");
    world.store.quarantine(used.object(), "once more").unwrap();
    assert_eq!(names(world.path("store/quarantine")).len(), 2);
}

#[test]
fn import_takes_the_place_of_a_damaged_object() {
    let world = World::new();
    let plain = tar(&[file("f", "x")]);
    world.archive(&plain).unwrap();
    let root = world.tree(&archive(&plain));
    std::thread::sleep(Duration::from_millis(20));
    fs::write(root.join("f"), "y").unwrap();
    // The same tree from another source: nobody looked the damaged one up.
    world.archive(&gzip(&plain)).unwrap();
    assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "x");
    assert!(world.store.verify(&archive(&plain)).unwrap());
    assert_eq!(names(world.path("store/quarantine")).len(), 1);
}

#[test]
fn damaged_index_entry_is_moved_aside_and_comes_back_by_an_import() {
    let world = World::new();
    let source = tar(&[file("f", "x")]);
    world.archive(&source).unwrap();
    let entry = world.path(&format!("store/index/archive-{}-{EPOCH}", sha(&source)));
    for bad in ["", "{}", "no json"] {
        fs::write(&entry, bad).unwrap();
        assert!(matches!(world.store.needs(&archive(&source)).unwrap(), Needs::Damaged(_)));
        assert_eq!(world.store.needs(&archive(&source)).unwrap(), Needs::Missing);
        world.archive(&source).unwrap();
        assert!(matches!(world.store.needs(&archive(&source)).unwrap(), Needs::There(_)));
    }
    assert_eq!(names(world.path("store/quarantine")).len(), 3);
    // One that cannot be read gives way to an import even if nobody looked it up before.
    fs::write(&entry, "").unwrap();
    world.archive(&source).unwrap();
    assert!(world.store.verify(&archive(&source)).unwrap());
}

#[test]
fn collection_removes_what_was_not_used_for_longest() {
    let world = World::new();
    let sources: Vec<_> = (0_u8..5).map(|n| tar(&[file("f", vec![n; 100])])).collect();
    for (source, age) in sources.iter().zip([50, 40, 30, 20, 10]) {
        world.archive(source).unwrap();
        used_before(&object_dir(&world, &archive(source)), age);
    }
    // The oldest is used again.
    drop(lease(&world, &archive(&sources[0])));
    let dry = Collect { max_bytes: Some(250), dry_run: true, ..Collect::default() };
    let would = world.store.collect(&dry, &BTreeSet::new(), now(), &mut |_| Ok(())).unwrap();
    let done = collect(&world, Some(250), &[]);
    assert_eq!((would.removed, would.objects), (done.removed, done.objects.clone()));
    assert_eq!((done.removed, done.removed_bytes, done.left, done.left_bytes), (3, 300, 2, 200));
    let found: Vec<_> = sources.iter().map(|s| world.store.find(&archive(s)).unwrap().is_some()).collect();
    assert_eq!(found, [true, false, false, false, true]);
    assert_eq!(names(world.path("store/index")).len(), 2);
    assert!(names(world.path("store/staging")).is_empty());

    used_before(&object_dir(&world, &archive(&sources[4])), 1000);
    let old = Collect { max_age_seconds: Some(500), ..Collect::default() };
    let done = world.store.collect(&old, &BTreeSet::new(), now(), &mut |_| Ok(())).unwrap();
    assert_eq!((done.removed, done.left), (1, 1));
}

#[test]
fn collection_leaves_what_is_leased_or_kept() {
    let world = World::new();
    let sources: Vec<_> = (0_u8..3).map(|n| tar(&[file("f", vec![n; 100])])).collect();
    for source in &sources {
        world.archive(source).unwrap();
    }
    let used = lease(&world, &archive(&sources[0]));
    let kept = world.store.tree(&archive(&sources[1])).unwrap().unwrap().blake3;
    // A lease lives as long as the last descriptor of it, in whatever process.
    let descriptor = used.as_fd().try_clone_to_owned().unwrap();
    let other = Lease::of(descriptor, used.object());
    drop(used);
    let done = collect(&world, Some(0), &[kept]);
    assert_eq!((done.removed, done.in_use, done.kept, done.left), (1, 1, 1, 2));
    assert!(matches!(check(&world, &other, ReadPolicy::Always), Checked::Sound(_)));
    drop(other);
    let done = collect(&world, Some(0), &[]);
    assert_eq!((done.removed, done.left, done.left_bytes), (2, 0, 0));
}

#[test]
fn collections_at_once_say_what_is_left() {
    let world = World::new();
    for n in 0..40_u32 {
        let bytes = tar(&[file("f", n.to_string().repeat(50))]);
        world.import(&archive(&bytes), &bytes).unwrap();
    }
    std::thread::sleep(Duration::from_millis(20));
    let wanted = Collect { max_bytes: Some(0), ..Collect::default() };
    let mut other = None;
    let done = world.store.collect(&wanted, &BTreeSet::new(), now(), &mut |point| {
        if point == "collect: remove an object" && other.is_none() {
            other = Some(collect(&world, Some(0), &[]));
        }
        Ok(())
    });
    let (done, other) = (done.unwrap(), other.unwrap());
    assert!(done.removed > 0 && other.removed > 0, "{done:?} {other:?}");
    assert_eq!((done.removed + other.removed, done.left, done.left_bytes), (40, 0, 0), "{done:?}");
}

#[test]
fn collection_removes_an_object_with_all_its_names() {
    let world = World::new();
    let plain = tar(&[file("f", "x")]);
    world.archive(&plain).unwrap();
    world.archive(&gzip(&plain)).unwrap();
    world.import(&Content::Directory { tree: None, epoch: EPOCH }, &plain).unwrap();
    let stat = world.store.stat(&BTreeSet::new()).unwrap();
    assert_eq!((stat.objects, stat.contents, stat.kinds[0].kind.as_str()), (1, 3, "shared"));
    let done = collect(&world, Some(0), &[]);
    assert_eq!((done.removed, done.objects[0].contents.len()), (1, 3));
    assert!(names(world.path("store/index")).is_empty() && names(world.path("store/trees")).is_empty());
}

#[test]
fn collection_removes_what_belongs_to_nobody() {
    let world = World::new();
    let (one, two) = (tar(&[file("f", "1")]), tar(&[file("f", "2")]));
    for source in [&one, &two] {
        world.archive(source).unwrap();
    }
    let object = object_dir(&world, &archive(&one));
    fs::remove_file(world.path(&format!("store/index/archive-{}-{EPOCH}", sha(&two)))).unwrap();
    fs::rename(&object, world.path("elsewhere")).unwrap();
    fs::create_dir(world.path("store/staging/dead")).unwrap();
    let done = collect(&world, None, &[]);
    assert_eq!((done.swept, done.dangling, done.removed, done.left), (1, 1, 1, 0));
    assert!(names(world.path("store/index")).is_empty());
}

#[test]
fn collection_that_dies_at_any_point_loses_nothing_that_is_found() {
    let sources: Vec<_> = (0_u8..3).map(|n| tar(&[dir("d/"), file("d/f", vec![n; 10])])).collect();
    for at in 1.. {
        let world = World::fast(Limits::default());
        for source in &sources {
            world.archive(source).unwrap();
            world.archive(&gzip(source)).unwrap();
        }
        let mut count = 0;
        let mut die = |_| {
            count += 1;
            if count == at {
                return Err(StoreError::Damaged { entry: String::new(), reason: "dies".to_owned() });
            }
            Ok(())
        };
        let wanted = Collect { max_bytes: Some(0), ..Collect::default() };
        let died = world.store.collect(&wanted, &BTreeSet::new(), now(), &mut die).is_err();
        for source in &sources {
            for source in [source.clone(), gzip(source)] {
                // Found is whole; what is not found can be taken in again.
                if world.store.find(&archive(&source)).unwrap().is_some() {
                    assert!(world.store.verify(&archive(&source)).unwrap());
                }
                world.archive(&source).unwrap();
                assert!(world.store.verify(&archive(&source)).unwrap());
            }
        }
        std::thread::sleep(Duration::from_millis(1));
        let done = collect(&world, Some(0), &[]);
        assert_eq!((done.left, done.removed), (0, 3), "after point {at}");
        assert!(names(world.path("store/staging")).is_empty() && names(world.path("store/index")).is_empty());
        if !died {
            assert!(at > 10, "only {at} points");
            return;
        }
    }
}

#[test]
fn collections_beside_imports_and_users_take_nothing_from_them() {
    let world = World::fast(Limits::default());
    let sources: Vec<_> = (0_u8..4).map(|n| tar(&[dir("d/"), file("d/f", vec![n; 1000])])).collect();
    let (over, removed) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..3_usize)
            .map(|user| {
                let (world, sources, removed) = (&world, &sources, &removed);
                scope.spawn(move || {
                    let store = open(&world.path("store"), Limits::default()).unwrap();
                    // On a busy machine the collector has its turn late.
                    let rounds = (0..5000).take_while(|n| *n < 60 || removed.load(SeqCst) < 20);
                    for round in rounds {
                        let source = &sources[(user + round) % sources.len()];
                        let content = archive(source);
                        if store.find(&content).unwrap().is_none() {
                            world.archive(source).unwrap();
                        }
                        let Needs::There(needed) = store.needs(&content).unwrap() else { continue };
                        let Some(lease) = store.lease(needed[0].object).unwrap() else { continue };
                        let checked = check(world, &lease, ReadPolicy::Always);
                        assert!(matches!(checked, Checked::Sound(_)), "{checked:?}");
                    }
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            while !over.load(SeqCst) {
                removed.fetch_add(collect(&world, Some(0), &[]).removed, SeqCst);
            }
        });
        let ended: Vec<_> = users.into_iter().map(|user| user.join()).collect();
        over.store(true, SeqCst);
        assert!(ended.iter().all(Result::is_ok));
        collector.join().unwrap();
    });
    assert!(removed.load(SeqCst) >= 20, "the collector removed {removed:?}");
    let aside = names(world.path("store/quarantine"));
    let why =
        |name: &String| fs::read_to_string(world.path("store/quarantine").join(name).join("damaged.json"));
    assert!(aside.is_empty(), "{aside:?}: {:?}", aside.iter().map(why).collect::<Vec<_>>());
    for source in &sources {
        if world.store.find(&archive(source)).unwrap().is_some() {
            assert!(world.store.verify(&archive(source)).unwrap());
        }
    }
}

#[test]
fn objects_are_listed_in_pages_and_by_any_of_their_digests() {
    let world = World::new();
    let sources: Vec<_> = (0_u8..5).map(|n| tar(&[file("f", vec![n; 100])])).collect();
    for source in &sources {
        world.archive(source).unwrap();
    }
    let (first, more) = world.store.list(None, None, 3).unwrap();
    let (rest, end) = world.store.list(Some(first[2].object), None, 3).unwrap();
    assert_eq!((first.len(), more, rest.len(), end), (3, true, 2, false));
    let object = world.store.tree(&archive(&sources[0])).unwrap().unwrap().blake3;
    for named in [sha(&sources[0]).to_string(), object.to_string()] {
        let (found, _) = world.store.list(None, Some(&named), 3).unwrap();
        assert_eq!(found.iter().map(|o| o.object).collect::<Vec<_>>(), [object]);
        assert_eq!((found[0].bytes, found[0].entries), (100, 1));
    }
    assert!(world.store.list(None, Some(&"0".repeat(64)), 3).unwrap().0.is_empty());
}
