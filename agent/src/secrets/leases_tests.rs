use super::file::{ENTRY, FILE};
use super::writer::GROWTH_BYTES;
use super::*;
use crate::secrets::testing::{Disk, HANGS};
use ampoule_journal::{Next, Reader, Writer};
use futures_util::future::join_all;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

fn job(number: u64) -> JobId {
    JobId::parse(&format!("01890a5d-ac96-774b-bcce-b3020{number:07}")).unwrap()
}

fn grant(number: u64) -> Grant {
    Grant {
        job: job(number),
        step: 1,
        step_name: Name::parse("deploy").unwrap(),
        project: Name::parse("web").unwrap(),
        server: Some(Name::parse("main").unwrap()),
        cluster: Some("c1/".to_owned()),
        secrets: vec![Given { name: "npm".to_owned(), provider: "vault:main".to_owned() }],
        rotates: false,
        accessor: Some(format!("accessor-{number}")),
        leases: Vec::new(),
        until: UnixNanos(15),
        minted_at: UnixNanos(1),
        given_at: None,
        revoking_at: None,
        closed_at: None,
    }
}

#[tokio::test]
async fn everything_that_was_written_down_is_there_after_a_restart_and_nobody_elses_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    let (a, b) = (leases.minted(grant(1)).await.unwrap(), leases.minted(grant(2)).await.unwrap());
    leases.leased(a, vec!["database/creds/ro/1".to_owned()]).await.unwrap();
    leases.leased(a, vec!["database/creds/rw/2".to_owned()]).await.unwrap();
    leases.renewed(a, UnixNanos(99)).await.unwrap();
    leases.handed_over(a, UnixNanos(7)).await.unwrap();
    leases.revoking(a, UnixNanos(8)).await.unwrap();
    leases.revoking(a, UnixNanos(9)).await.unwrap();
    leases.closed(b, UnixNanos(10)).await.unwrap();
    let before = (leases.of_job(&job(1)), leases.of_job(&job(2)));
    assert!(Leases::open(dir.path()).is_err(), "one journal has one writer");
    drop(leases);
    let leases = Leases::open(dir.path()).unwrap();
    assert_eq!((leases.of_job(&job(1)), leases.of_job(&job(2))), before);
    let (_, kept) = leases.open_grants().pop().unwrap();
    assert_eq!(kept.leases, ["database/creds/ro/1", "database/creds/rw/2"]);
    assert_eq!((kept.revoking_at, kept.until), (Some(UnixNanos(8)), UnixNanos(99)));
    assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
    // What is over is forgotten with its job's record, and what is open is not.
    leases.forget(&job(1)).await.unwrap();
    leases.forget(&job(2)).await.unwrap();
    assert_eq!((leases.of_job(&job(1)).len(), leases.of_job(&job(2)).len()), (1, 0));
    assert!(leases.closed(b, UnixNanos(1)).await.is_err());
    drop(leases);
    let leases = Leases::open(dir.path()).unwrap();
    assert_eq!((leases.of_job(&job(1)).len(), leases.of_job(&job(2)).len()), (1, 0));
    // A number that was used is not another's for as long as anything is kept.
    assert!(leases.minted(grant(3)).await.unwrap() > a);
}

#[tokio::test]
async fn torn_end_was_told_to_nobody_and_anything_else_keeps_the_agent_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    // A file begins with a frame about numbers.
    let first = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    leases.minted(grant(1)).await.unwrap();
    let whole = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    leases.minted(grant(2)).await.unwrap();
    drop(leases);
    let path = dir.path().join(FILE);
    let bytes = std::fs::read(&path).unwrap();
    for cut in whole..bytes.len() as u64 {
        std::fs::write(&path, &bytes[..usize::try_from(cut).unwrap()]).unwrap();
        let leases = Leases::open(dir.path()).unwrap();
        assert_eq!(leases.open_grants().len(), 1, "{cut}");
    }
    // What a cut of power leaves of the last one: sectors that were not written are zeros.
    let last = usize::try_from(whole).unwrap();
    for from in last..bytes.len() {
        let mut torn = bytes.clone();
        torn[from..(from + 100).min(bytes.len())].fill(0);
        std::fs::write(&path, torn).unwrap();
        assert_eq!(Leases::open(dir.path()).unwrap().open_grants().len(), 1, "{from}");
    }
    for (at, frame) in [(0, 0), (20, 0), (usize::try_from(first).unwrap(), first), (last - 1, first)] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let refused = Leases::open(dir.path()).unwrap_err();
        assert!(matches!(refused, LeasesError::Damaged { offset, .. } if offset == frame), "{refused}");
    }
    // An entry that this build does not know is one that it must not pass over.
    let file = File::create(&path).unwrap();
    Writer::create(file).unwrap().append(ENTRY, b"{\"entry\":\"extended\",\"id\":1}").unwrap();
    assert!(matches!(Leases::open(dir.path()), Err(LeasesError::Damaged { .. })));
}

#[tokio::test]
async fn file_stays_small_however_many_grants_there_were() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    let open = leases.minted(grant(1)).await.unwrap();
    let mut most = 0;
    for number in 2..150 {
        let made = join_all((0..100).map(|_| leases.minted(grant(number)))).await;
        let at = UnixNanos(number);
        join_all(made.into_iter().map(|id| leases.closed(id.unwrap(), at)))
            .await
            .into_iter()
            .for_each(Result::unwrap);
        leases.forget(&job(number)).await.unwrap();
        leases.handed_over(open, at).await.unwrap();
        most = most.max(std::fs::metadata(dir.path().join(FILE)).unwrap().len());
    }
    assert!(most < 3 * GROWTH_BYTES, "{most}");
    assert_eq!(leases.get(open).unwrap().given_at, Some(UnixNanos(149)));
    drop(leases);
    assert!(Leases::open(dir.path()).unwrap().open_grants().iter().any(|(id, _)| *id == open));
}

/// A disk that fails.
struct Failing {
    file: File,
    /// How many syncs work.
    good: u32,
}

impl Medium for Failing {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_once(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.good = self.good.checked_sub(1).ok_or_else(|| io::Error::other("failed"))?;
        self.file.sync_data()
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.file.cut(bytes)
    }
}

#[tokio::test]
async fn what_cannot_be_made_durable_is_not_granted_and_nothing_is_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open_on(dir.path(), |file| Failing { file, good: 2 }).unwrap();
    let id = leases.minted(grant(1)).await.unwrap();
    assert!(matches!(leases.leased(id, vec!["l".to_owned()]).await, Err(LeasesError::Write(_))));
    assert!(leases.get(id).unwrap().leases.is_empty());
    assert!(leases.minted(grant(2)).await.is_err());
    assert_eq!(leases.open_grants().len(), 1);
    drop(leases);
    // Also when the file is due to be written anew, which would work.
    let leases = Leases::open_on(dir.path(), |file| Failing { file, good: 2 }).unwrap();
    let many = || vec!["x".repeat(700 << 10)];
    leases.leased(id, many()).await.unwrap();
    assert!(leases.leased(id, many()).await.is_err());
    assert!(leases.minted(grant(2)).await.is_err());
}

#[tokio::test]
async fn nothing_is_granted_while_nobody_knows_which_file_a_cut_of_power_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let leases = Leases::open(dir.path()).unwrap();
    leases.minted(grant(1)).await.unwrap();
    drop(leases);
    let mut scribe = Scribe::open(dir.path(), Box::new(|file| file)).unwrap();
    scribe.is_unsure = true;
    let leases = Leases::begin(dir.path(), scribe).unwrap();
    assert!(matches!(leases.minted(grant(2)).await, Err(LeasesError::Write(_))));
    assert_eq!(leases.jobs(), BTreeSet::from([job(1)]));
    drop(leases);
    assert!(Leases::open(dir.path()).unwrap().minted(grant(2)).await.is_ok());
}

fn hanging(dir: &Path) -> (Arc<Disk>, Arc<Leases>) {
    let disk = Arc::new(Disk::default());
    let leases = Arc::new(disk.leases(dir));
    (disk, leases)
}

#[tokio::test]
async fn while_a_disk_hangs_in_a_sync_grants_are_read_and_whoever_waits_holds_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, leases) = hanging(dir.path());
    let known = leases.minted(grant(1)).await.unwrap();
    disk.hang(true);
    // On the one thread that this test has.
    let (of_mint, of_close) = (leases.clone(), leases.clone());
    let minted = tokio::spawn(async move { of_mint.minted(grant(2)).await });
    disk.until_hung().await;
    let begun = Instant::now();
    let closed = tokio::spawn(async move { of_close.closed(known, UnixNanos(9)).await });
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        // What is not durable is not shown.
        assert!(leases.get(known).unwrap().is_open() && leases.of_job(&job(2)).is_empty());
        assert_eq!((leases.open_grants().len(), leases.jobs().len(), leases.count()), (1, 1, (1, 0)));
    }
    assert!(begun.elapsed() < HANGS / 2, "{:?}", begun.elapsed());
    assert!(!minted.is_finished() && !closed.is_finished(), "nobody is told before it is durable");
    disk.hang(false);
    let id = minted.await.unwrap().unwrap();
    closed.await.unwrap().unwrap();
    assert!(leases.get(id).unwrap().is_open() && !leases.get(known).unwrap().is_open());
}

/// Asks for all of this while the disk hangs, so that it is written together; behind another entry, which is written alone.
async fn together<T>(
    disk: &Disk,
    leases: &Arc<Leases>,
    asked: impl IntoIterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    disk.hang(true);
    let alone = tokio::spawn({
        let leases = leases.clone();
        async move { leases.minted(grant(99)).await }
    });
    disk.until_hung().await;
    let answers = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        disk.hang(false);
    };
    let (all, ()) = tokio::join!(join_all(asked), answers);
    alone.await.unwrap().unwrap();
    all
}

#[tokio::test]
async fn what_waits_shares_a_sync_and_a_frame_and_a_torn_one_was_told_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, leases) = hanging(dir.path());
    let before = disk.syncs();
    let ids = together(&disk, &leases, (0..40).map(|number| leases.minted(grant(number)))).await;
    assert_eq!(disk.syncs() - before, 2);
    let ids: BTreeSet<_> = ids.into_iter().map(Result::unwrap).collect();
    assert_eq!(ids.len(), 40);
    let before = leases.open_grants();
    drop(leases);
    let path = dir.path().join(FILE);
    let bytes = std::fs::read(&path).unwrap();
    let mut reader = Reader::new(bytes.as_slice());
    let mut last = 0;
    while let Next::Frame(frame) = reader.next_frame().unwrap() {
        last = usize::try_from(frame.offset).unwrap();
    }
    // A cut of power writes its sectors in any order: also one alone in the middle.
    for from in (last..bytes.len()).step_by(64) {
        let mut torn = bytes.clone();
        torn[from..(from + 512).min(bytes.len())].fill(0);
        for torn in [torn, bytes[..from].to_vec()] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(Leases::open(dir.path()).unwrap().open_grants().len(), 1, "{from}");
        }
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Leases::open(dir.path()).unwrap().open_grants(), before);
}

#[tokio::test]
async fn entries_that_share_a_sync_are_held_against_each_other_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, leases) = hanging(dir.path());
    let (a, b) = (leases.minted(grant(1)).await.unwrap(), leases.minted(grant(2)).await.unwrap());
    leases.closed(b, UnixNanos(5)).await.unwrap();
    let (of, job) = (&leases, job(2));
    let asked: [futures_util::future::BoxFuture<'_, Result<(), LeasesError>>; 5] = [
        Box::pin(of.forget(&job)),
        Box::pin(of.closed(b, UnixNanos(6))),
        Box::pin(of.revoking(a, UnixNanos(7))),
        Box::pin(of.revoking(a, UnixNanos(8))),
        Box::pin(of.closed(77, UnixNanos(9))),
    ];
    let done = together(&disk, &leases, asked).await;
    assert_eq!(done.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true, false]);
    assert!(matches!(done[1], Err(LeasesError::Unknown(id)) if id == b), "{done:?}");
    assert_eq!(leases.get(a).unwrap().revoking_at, Some(UnixNanos(7)), "the first time counts");
    let before = leases.open_grants();
    drop(leases);
    assert_eq!(Leases::open(dir.path()).unwrap().open_grants(), before);
}

#[tokio::test]
async fn lot_that_has_no_room_is_written_one_by_one_and_only_what_has_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, leases) = hanging(dir.path());
    let id = leases.minted(grant(1)).await.unwrap();
    disk.room(700);
    let large = || leases.leased(id, vec!["x".repeat(1000)]);
    let of = &leases;
    let asked: [futures_util::future::BoxFuture<'_, Result<(), LeasesError>>; 3] = [
        Box::pin(of.handed_over(id, UnixNanos(3))),
        Box::pin(large()),
        Box::pin(of.renewed(id, UnixNanos(4))),
    ];
    let done = together(&disk, &leases, asked).await;
    assert_eq!(done.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert!(large().await.is_err());
    let grant = leases.get(id).unwrap();
    assert_eq!((grant.given_at, grant.until, grant.leases.len()), (Some(UnixNanos(3)), UnixNanos(4), 0));
    drop(leases);
    assert_eq!(Leases::open(dir.path()).unwrap().get(id), Some(grant));
}

#[tokio::test]
async fn number_of_a_grant_is_given_once_however_often_the_agent_starts_with_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    for number in 0..4 {
        let leases = Leases::open(dir.path()).unwrap();
        let id = leases.minted(grant(number)).await.unwrap();
        assert!(last < Some(id), "{id} after {last:?}");
        last = Some(id);
        leases.closed(id, UnixNanos(2)).await.unwrap();
        leases.forget(&job(number)).await.unwrap();
        drop(leases);
        // Twice: the file that knows of it is written anew without it.
        assert!(Leases::open(dir.path()).unwrap().jobs().is_empty());
    }
}
