//! Progress bars: on a terminal, while something lasts, and gone without a trace when it has ended.
//!
//! Every line for people is written with the bar out of the way. There is one at a time, and no thread draws it.

use ampoule_agent::local::{Progress, Work};
use ampoule_evidence::escape;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

/// How often a bar is drawn in a second, at most.
const DRAWN_A_SECOND: u8 = 10;

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Whether standard error is a terminal that can draw.
pub(crate) fn can_be_drawn() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Draws how far something is; takes the bar away when it has ended.
pub(crate) fn show(progress: &Progress) {
    if progress.ended {
        return clear();
    }
    let mut current = BAR.lock().unwrap_or_else(PoisonError::into_inner);
    let bar = current.get_or_insert_with(|| {
        let target = ProgressDrawTarget::stderr_with_hz(DRAWN_A_SECOND);
        let bar = ProgressBar::with_draw_target(progress.total, target);
        bar.set_style(style(progress.total.is_some()));
        bar.set_message(message(progress));
        bar
    });
    bar.set_position(progress.bytes);
}

/// Takes the bar away.
pub(crate) fn clear() {
    if let Some(bar) = BAR.lock().unwrap_or_else(PoisonError::into_inner).take() {
        bar.finish_and_clear();
    }
}

/// Writes something with the bar out of the way.
pub(crate) fn aside(write: impl FnOnce()) {
    match &*BAR.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// No colours: whoever sets NO_COLOR sees the same.
fn style(total: bool) -> ProgressStyle {
    let template = match total {
        true => "{wide_msg} [{bar:24}] {binary_bytes}/{binary_total_bytes} {elapsed}",
        false => "{wide_msg} {binary_bytes} {elapsed}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

fn message(progress: &Progress) -> String {
    let doing = match progress.work {
        Work::Fetch => "fetching",
        Work::Import => "importing",
        Work::Outputs => "copying",
        Work::Release => "releasing",
    };
    format!("{doing} {}", escape(&progress.what))
}
