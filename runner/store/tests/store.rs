//! The launcher's side: what is found, what survives a crash, what a taken-over worker cannot get in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity
)]

mod common;

use ampoule_spec::wire::Content;
use ampoule_store::worker::{Claims, WorkerResult};
use ampoule_store::{Limits, Owner, Store, StoreError};
use common::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink as make_symlink};
use std::path::Path;
use std::process::Command;

fn directory(tree: Option<ampoule_spec::Sha256>) -> Content {
    Content::Directory { tree, epoch: EPOCH }
}

fn plain_file(bytes: &[u8]) -> Content {
    Content::File { sha256: Some(sha(bytes)), executable: false, epoch: EPOCH }
}

#[test]
fn contents_are_found_after_import_and_not_before() {
    let world = World::new();
    let source = tar(&[dir("d/"), file("d/f", "12345"), symlink("l", "d")]);
    let content = archive(&source);
    assert_eq!(world.store.find(&content).unwrap(), None);
    assert!(world.store.tree(&content).unwrap().is_none());
    assert!(!world.store.verify(&content).unwrap());
    let imported = world.archive(&source).unwrap();
    assert_eq!((imported.sha256, imported.bytes, imported.entries), (sha(&source), 5, 3));
    assert_eq!(world.store.find(&content).unwrap(), Some(imported.clone()));
    // Another time is another content, and so is the same digest as something else.
    let Content::Archive { sha256, .. } = content else { unreachable!() };
    assert_eq!(world.store.find(&Content::Archive { sha256, epoch: 0 }).unwrap(), None);
    assert_eq!(world.store.find(&Content::ImageTar { sha256 }).unwrap(), None);
    // A store that is opened again has it.
    let again = open(&world.path("store"), Limits::default()).unwrap();
    assert_eq!(again.find(&archive(&source)).unwrap(), Some(imported));
}

#[test]
fn import_of_what_is_there_keeps_what_is_there() {
    let world = World::new();
    let source = tar(&[file("f", "x")]);
    let first = world.archive(&source).unwrap();
    let inode = fs::metadata(world.tree(&archive(&source)).join("f")).unwrap().ino();
    let before = world.snapshot();
    assert_eq!(world.archive(&source).unwrap(), first);
    let after = world.snapshot();
    let changed: Vec<_> = before.iter().filter(|(k, v)| after.get(*k) != Some(*v)).map(|(k, _)| k).collect();
    // A rename that is refused touches no directory that it was refused in; that it was used is said of the object.
    let used = world.tree(&archive(&source)).parent().unwrap().to_owned();
    let changed: Vec<_> = changed.into_iter().filter(|path| **path != used).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "{changed:?}");
    assert_eq!(fs::metadata(world.tree(&archive(&source)).join("f")).unwrap().ino(), inode);
}

#[test]
fn equal_trees_of_different_contents_are_stored_once() {
    let world = World::new();
    let plain = tar(&[file("f", "x")]);
    let packed = gzip(&plain);
    world.archive(&plain).unwrap();
    world.archive(&packed).unwrap();
    world.import(&directory(None), &plain).unwrap();
    assert_eq!(fs::read_dir(world.path("store/trees")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(world.path("store/index")).unwrap().count(), 3);
    let Content::Archive { sha256, .. } = archive(&plain) else { unreachable!() };
    world.import(&Content::Archive { sha256, epoch: 1 }, &plain).unwrap();
    assert_eq!(fs::read_dir(world.path("store/trees")).unwrap().count(), 2, "another time, another tree");
}

#[test]
fn two_imports_at_once_give_one_content() {
    let world = World::new();
    let source = tar(&[file("f", vec![9; 100_000])]);
    let all: Vec<_> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..8).map(|_| scope.spawn(|| world.archive(&source).unwrap())).collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    assert!(all.iter().all(|one| *one == all[0]));
    assert_eq!(fs::read_dir(world.path("store/trees")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(world.path("store/staging")).unwrap().count(), 0);
}

#[test]
fn directories_and_files_are_named_by_what_they_hold() {
    let world = World::new();
    let source = tar(&[file("f", "x"), dir("d/")]);
    let tree = world.import(&directory(None), &source).unwrap().sha256;
    assert_ne!(tree, sha(&source));
    // The same tree from another archive.
    let other = tar(&[dir("./d"), file("./f", "x").mode(0o600).mtime(5)]);
    assert_eq!(world.import(&directory(Some(tree)), &other).unwrap().sha256, tree);
    assert!(world.store.find(&directory(Some(tree))).unwrap().is_some());
    assert!(world.store.find(&directory(None)).unwrap().is_none());

    for executable in [false, true] {
        let unnamed = Content::File { sha256: None, executable, epoch: EPOCH };
        let named = Content::File { sha256: Some(sha(b"#!")), executable, epoch: EPOCH };
        assert_eq!(world.import(&unnamed, b"#!").unwrap().sha256, sha(b"#!"));
        assert_eq!(world.import(&named, b"#!").unwrap().bytes, 2);
        let path = world.tree(&named).join("content");
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, if executable { 0o755 } else { 0o644 });
    }
    let empty = plain_file(b"");
    assert_eq!(world.import(&empty, b"").unwrap().bytes, 0);
}

/// The example of docs/formats.md, which a Python program computed.
#[test]
fn tree_digest_is_the_documented_one() {
    let source = tar(&[
        file("hello.txt", "hello\n"),
        file("bin/run", "#!/bin/sh\n").mode(0o755),
        dir("empty/"),
        symlink("link", "hello.txt"),
    ]);
    let tree = World::new().import(&directory(None), &source).unwrap().sha256;
    assert_eq!(tree.to_string(), "7a64730adbefcdb5c2528a46b375e3ac336520dc912ae03cd7269eae5c7797b9");
    let empty = World::new().import(&directory(None), &tar(&[])).unwrap().sha256;
    assert_eq!(empty.to_string(), "6a44a5cdf5f4fc97548a9eee69b9309d89e9a09cff3f6f94bd85010fe3ee5f0a");
}

#[test]
fn tree_digest_tells_different_trees_apart() {
    let trees = [
        tar(&[file("a", "x")]),
        tar(&[file("a", "y")]),
        tar(&[file("b", "x")]),
        tar(&[file("a", "x").mode(0o755)]),
        tar(&[symlink("a", "x")]),
        tar(&[dir("a/")]),
        tar(&[dir("a/"), dir("a/b")]),
        tar(&[dir("a/"), dir("b/")]),
        tar(&[file("a", "x"), dir("b/")]),
        tar(&[file("a/b", "x")]),
        tar(&[file("ab", "x")]),
        tar(&[]),
    ];
    let world = World::new();
    let digests: std::collections::BTreeSet<_> =
        trees.iter().map(|source| world.import(&directory(None), source).unwrap().sha256).collect();
    assert_eq!(digests.len(), trees.len());
}

#[test]
fn verify_finds_every_change_of_a_stored_tree() {
    let changes: [(&str, &dyn Fn(&Path)); 12] = [
        ("content", &|root| fs::write(root.join("d/f"), "y").unwrap()),
        ("longer", &|root| fs::write(root.join("d/f"), "xx").unwrap()),
        ("more", &|root| fs::write(root.join("new"), "").unwrap()),
        ("fewer", &|root| fs::remove_file(root.join("d/f")).unwrap()),
        ("renamed", &|root| fs::rename(root.join("d/f"), root.join("d/g")).unwrap()),
        ("mode", &|root| fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o755)).unwrap()),
        ("set-id", &|root| {
            fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o4755)).unwrap()
        }),
        ("open", &|root| fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o777)).unwrap()),
        ("time", &|root| {
            fs::File::open(root.join("d/f")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap()
        }),
        ("target", &|root| {
            fs::remove_file(root.join("l")).unwrap();
            make_symlink("/", root.join("l")).unwrap();
        }),
        ("hard link", &|root| fs::hard_link(root.join("d/f"), root.parent().unwrap().join("held")).unwrap()),
        ("gone", &|root| fs::remove_dir_all(root.join("d")).unwrap()),
    ];
    for (what, change) in changes {
        let world = World::new();
        let source = tar(&[dir("d/"), file("d/f", "x"), symlink("l", "d")]);
        world.archive(&source).unwrap();
        assert!(world.store.verify(&archive(&source)).unwrap());
        change(&world.tree(&archive(&source)));
        let result = world.store.verify(&archive(&source));
        assert!(matches!(result, Err(StoreError::Damaged { .. })), "{what}: {result:?}");
    }
}

#[test]
fn verify_finds_what_only_the_digests_can_tell() {
    let source = tar(&[dir("d/"), file("d/f", "x").mtime(EPOCH), file("d/g", "x").mtime(EPOCH)]);
    let image = Content::ImageTar { sha256: sha(&source) };
    let restore = |path: &Path| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(EPOCH);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    };
    let changes: [(&str, &Content, &dyn Fn(&Path)); 4] = [
        ("content", &archive(&source), &|root| fs::write(root.join("d/f"), "y").unwrap()),
        ("mode", &image, &|root| {
            fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap()
        }),
        ("mode of a directory", &image, &|root| {
            fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("links", &image, &|root| {
            fs::remove_file(root.join("d/g")).unwrap();
            fs::hard_link(root.join("d/f"), root.join("d/g")).unwrap();
        }),
    ];
    for (what, content, change) in changes {
        let world = World::new();
        world.import(content, &source).unwrap();
        let root = world.tree(content);
        let before = fs::metadata(root.join("d")).unwrap().modified().unwrap();
        change(&root);
        restore(&root.join("d/f"));
        fs::File::open(root.join("d")).unwrap().set_modified(before).unwrap();
        let error = world.store.verify(content).unwrap_err().to_string();
        assert!(error.contains("its digest is"), "{what}: {error}");
    }
}

#[test]
fn damaged_index_is_reported_and_not_believed() {
    let world = World::new();
    let (one, two) = (tar(&[file("a", "x")]), tar(&[file("a", "y")]));
    world.archive(&one).unwrap();
    world.archive(&two).unwrap();
    let index = |source: &[u8]| world.path(&format!("store/index/archive-{}-{EPOCH}", sha(source)));
    let good = fs::read(index(&one)).unwrap();
    for bad in [
        b"".to_vec(),
        b"{}".to_vec(),
        good[..good.len() - 1].to_vec(),
        fs::read(index(&two)).unwrap(),
        vec![b' '; 70_000],
    ] {
        fs::write(index(&one), &bad).unwrap();
        assert!(matches!(world.store.find(&archive(&one)), Err(StoreError::Damaged { .. })));
    }
    fs::write(index(&one), &good).unwrap();
    fs::remove_dir_all(world.tree(&archive(&one)).parent().unwrap()).unwrap();
    assert_eq!(world.store.find(&archive(&one)).unwrap(), None);
}

#[test]
fn store_directory_open_to_others_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(open(temp.path(), Limits::default()).unwrap_err().name(), "directory");
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o700)).unwrap();
    open(temp.path(), Limits::default()).unwrap();
    fs::set_permissions(temp.path().join("trees"), fs::Permissions::from_mode(0o770)).unwrap();
    assert_eq!(open(temp.path(), Limits::default()).unwrap_err().name(), "directory");
}

#[test]
fn sweep_removes_what_died_and_leaves_what_lives() {
    let world = World::new();
    let content = archive(b"");
    let live = world.store.begin(&content).unwrap();
    let dead = world.store.begin(&content).unwrap();
    let worker_fd = dead.worker_dir().unwrap();
    let names: Vec<_> =
        fs::read_dir(world.path("store/staging")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(names.len(), 2);
    // What a crash leaves: half a tree, and no lock. A worker that survives holds none either.
    drop(dead);
    fs::write(world.path("store/staging/0123.record"), "half").unwrap();
    assert_eq!(world.sweep(1), 2);
    drop(worker_fd);
    let left: Vec<_> = fs::read_dir(world.path("store/staging")).unwrap().collect();
    assert_eq!(left.len(), 1);
    world.store.discard(live).unwrap();
    assert_eq!(world.store.sweep_staging().unwrap(), Default::default());
}

#[test]
fn sweep_removes_trees_that_are_meant_to_stop_it() {
    let world = World::new();
    let staging = world.store.begin(&archive(b"")).unwrap();
    let root = world.path("store/staging");
    let tree = fs::read_dir(&root).unwrap().next().unwrap().unwrap().path().join("tree");
    // Deeper than any path can say, made as a worker would make it: from directory to directory.
    let mut dir = open_dir(&tree);
    let name = "d".repeat(200);
    for depth in 0..200 {
        rustix::fs::mkdirat(&dir, &name, rustix::fs::Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&dir, ".removed-1", rustix::fs::Mode::empty()).unwrap();
        rustix::fs::symlinkat("/", &dir, "link").unwrap();
        let next = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        if depth % 7 == 0 {
            rustix::fs::fchmod(&dir, rustix::fs::Mode::empty()).unwrap();
        }
        dir = next.unwrap();
    }
    drop((dir, staging));
    let before = fs::read(world.path("outside/passwd")).unwrap();
    assert_eq!(world.sweep(0), 1);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    assert_eq!(fs::read(world.path("outside/passwd")).unwrap(), before);
}

#[test]
fn crash_between_tree_and_index_is_healed_by_the_next_import() {
    let world = World::new();
    let source = tar(&[file("f", "x")]);
    world.archive(&source).unwrap();
    let index = world.path(&format!("store/index/archive-{}-{EPOCH}", sha(&source)));
    fs::remove_file(&index).unwrap();
    assert_eq!(world.store.find(&archive(&source)).unwrap(), None);
    world.archive(&source).unwrap();
    assert!(index.exists());
    assert_eq!(fs::read_dir(world.path("store/trees")).unwrap().count(), 1);
}

/// Plays a worker that was taken over: any tree, any claims.
fn forged(world: &World, content: &Content, source: &[u8], make: &dyn Fn(&Path)) -> Result<(), StoreError> {
    let staging = world.store.begin(content).unwrap();
    let root = world.path("store/staging");
    let tree = fs::read_dir(root).unwrap().next().unwrap().unwrap().path().join("tree");
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
    make(&tree);
    // What an honest worker does at its end; a dishonest one does it too, to look honest.
    let mut all = vec![tree.clone()];
    walk(&tree, &mut |path| all.push(path.to_owned()));
    for path in all.iter().rev() {
        let time = format!("@{}", if path.ends_with("late") { 5 } else { EPOCH });
        let touch = Command::new("touch").args(["-h", "-d", &time]).arg(path).status().unwrap();
        assert!(touch.success());
    }
    let result = WorkerResult::Done(Claims::default());
    world.store.commit(staging, &result, &received(source)).map(drop)
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn taken_over_worker_gets_no_odd_tree_in() {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let plain = |path: &Path| {
        fs::write(path, "x").unwrap();
        mode(path, 0o644);
    };
    let folder = |path: &Path| {
        fs::create_dir(path).unwrap();
        mode(path, 0o755);
    };
    let attribute = |path: &Path, name: &str| {
        rustix::fs::setxattr(path, name, b"y", rustix::fs::XattrFlags::empty()).unwrap();
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let trees: &[(&str, &str, Make<'_>)] = &[
        ("shape", "set-uid file", &|t| {
            plain(&t.join("f"));
            mode(&t.join("f"), 0o4755);
        }),
        ("shape", "set-gid directory", &|t| {
            folder(&t.join("d"));
            mode(&t.join("d"), 0o2755);
        }),
        ("shape", "odd mode", &|t| {
            plain(&t.join("f"));
            mode(&t.join("f"), 0o666);
        }),
        ("shape", "odd mode of the root", &|t| mode(t, 0o777)),
        ("shape", "odd time", &|t| plain(&t.join("late"))),
        ("shape", "odd time of a link", &|t| make_symlink("x", t.join("late")).unwrap()),
        ("shape", "FIFO", &|t| rustix::fs::mkfifoat(open_dir(t), "p", rustix::fs::Mode::RUSR).unwrap()),
        ("shape", "whiteout in an input", &|t| {
            rustix::fs::mknodat(
                open_dir(t),
                "w",
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::empty(),
                0,
            )
            .unwrap();
        }),
        ("shape", "a name outside the tree", &|t| {
            plain(&t.join("f"));
            fs::hard_link(t.join("f"), t.parent().unwrap().join("kept")).unwrap();
        }),
        ("shape", "attribute of a file", &|t| {
            plain(&t.join("f"));
            attribute(&t.join("f"), "user.overlay.metacopy");
        }),
        ("shape", "attribute of a directory", &|t| {
            folder(&t.join("d"));
            attribute(&t.join("d"), "user.overlay.opaque");
        }),
        ("too_deep", "depth of 65", &|t| {
            let mut path = t.to_owned();
            for _ in 0..65 {
                path = path.join("d");
                folder(&path);
            }
        }),
        ("too_many", "too many entries", &|t| (0..101).for_each(|i| plain(&t.join(format!("f{i}"))))),
        ("too_large", "too many bytes", &|t| {
            plain(&t.join("f"));
            fs::File::options().write(true).open(t.join("f")).unwrap().set_len(1 << 40).unwrap();
        }),
    ];
    for (name, what, make) in trees {
        let world = World::with(Limits { entries_max: 100, bytes_max: 1 << 30, ..Limits::default() });
        let before = world.snapshot();
        let error = forged(&world, &archive(b"any"), b"any", make).expect_err(what);
        assert_eq!(error.name(), *name, "{what}: {error}");
        assert!(world.snapshot() == before, "{what}");
    }
    if is_root() {
        let world = World::new();
        for (uid, gid) in [(1000, 0), (0, 1000), (70_000, 0)] {
            let make = |t: &Path| {
                plain(&t.join("f"));
                lchown(t.join("f"), Some(uid), Some(gid)).unwrap();
            };
            let error = forged(&world, &archive(b"any"), b"any", &make).unwrap_err();
            assert_eq!(error.name(), "shape");
        }
    }
}

#[test]
fn taken_over_worker_cannot_name_what_it_made() {
    let world = World::new();
    let evil = |t: &Path| {
        fs::write(t.join("content"), "evil").unwrap();
        fs::set_permissions(t.join("content"), fs::Permissions::from_mode(0o644)).unwrap();
    };
    let name = |content: &Content, source: &[u8]| {
        forged(&world, content, source, &evil).unwrap_err().name().to_owned()
    };
    // The archive that took it over was sent under the name of another one.
    assert_eq!(name(&archive(b"the good archive"), b"the evil archive"), "digest_mismatch");
    // The tree of a directory, the bytes of a file or document are not those that the name says.
    assert_eq!(name(&directory(Some(sha(b"a tree"))), b"any"), "tree_mismatch");
    assert_eq!(name(&plain_file(b"good"), b"good"), "shape");
    assert_eq!(name(&Content::File { sha256: None, executable: false, epoch: EPOCH }, b"good"), "shape");
    assert_eq!(name(&Content::OciConfig { sha256: sha(b"good") }, b"good"), "shape");
    assert_eq!(name(&Content::OciManifest { sha256: sha(b"good") }, b"good"), "shape");
    // What it can do, as the module's page says: spoil the entry of the archive that took it over.
    forged(&world, &archive(b"evil archive"), b"evil archive", &evil).unwrap();
    assert_eq!(fs::read_dir(world.path("store/index")).unwrap().count(), 1);
}

#[test]
fn ids_of_a_worker_are_shifted_back() {
    if !is_root() {
        println!("skipped: not root");
        return;
    }
    let base = 1_000_000;
    let world = World::new();
    let store =
        Store::open(&open_dir(&world.path("store")), Owner::Mapped { base }, Limits::default()).unwrap();
    let content = Content::ImageTar { sha256: sha(b"image") };
    let import = |make: &dyn Fn(&Path)| {
        let staging = store.begin(&content).unwrap();
        let root = world.path("store/staging");
        let tree = fs::read_dir(root).unwrap().next().unwrap().unwrap().path().join("tree");
        assert_eq!(fs::metadata(&tree).unwrap().uid(), base);
        make(&tree);
        store.commit(staging, &WorkerResult::Done(Claims::default()), &received(b"image"))
    };
    let own = |path: &Path, uid: u32, gid: u32| lchown(path, Some(uid), Some(gid)).unwrap();
    let outside = import(&|t| fs::write(t.join("f"), "x").unwrap());
    assert_eq!(outside.unwrap_err().name(), "shape", "the host's root is outside the range");
    for (uid, gid) in [(base + 65_536, base), (base, base + 65_536), (base - 1, base)] {
        let outside = import(&|t| {
            fs::write(t.join("f"), "x").unwrap();
            own(&t.join("f"), uid, gid);
        });
        assert_eq!(outside.unwrap_err().name(), "shape", "{uid}:{gid}");
    }
    import(&|t| {
        fs::create_dir(t.join("home")).unwrap();
        fs::write(t.join("home/f"), "x").unwrap();
        fs::hard_link(t.join("home/f"), t.join("home/g")).unwrap();
        make_symlink("f", t.join("home/l")).unwrap();
        own(&t.join("home"), base, base + 65_535);
        own(&t.join("home/f"), base + 1000, base + 100);
        own(&t.join("home/l"), base + 1000, base);
    })
    .unwrap();
    let tree = world.path(&format!("store/trees/{}/tree", store.tree(&content).unwrap().unwrap().blake3));
    let owners = |name: &str| {
        let meta = fs::symlink_metadata(tree.join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!(owners("."), (0, 0));
    assert_eq!(owners("home"), (0, 65_535));
    assert_eq!(owners("home/f"), (1000, 100));
    assert_eq!(owners("home/g"), (1000, 100));
    assert_eq!(owners("home/l"), (1000, 0));
    assert!(store.verify(&content).unwrap());
}

#[test]
fn worker_that_refuses_or_dies_leaves_nothing() {
    let world = World::new();
    let before = world.snapshot();
    let staging = world.store.begin(&archive(b"x")).unwrap();
    let refused = WorkerResult::Refused {
        code: ampoule_spec::Code::InputRefused,
        name: "sparse".to_owned(),
        message: "m".to_owned(),
    };
    let error = world.store.commit(staging, &refused, &received(b"x")).unwrap_err();
    assert_eq!((error.name(), error.code()), ("sparse", ampoule_spec::Code::InputRefused));
    let staging = world.store.begin(&archive(b"x")).unwrap();
    world.store.discard(staging).unwrap();
    assert!(world.snapshot() == before);
}
