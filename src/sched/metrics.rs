//! Counters and histograms for `/metrics`, in the text format of Prometheus (exposition format
//! 0.0.4).

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;

use super::job::{FinishedJob, Mode, Status};

/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0,
];
/// In the order in which they are declared.
pub(super) const MODES: [Mode; 5] = [
    Mode::Quick,
    Mode::Detailed,
    Mode::Check,
    Mode::Matrix,
    Mode::Diff,
];

/// A Prometheus histogram.
#[derive(Debug, Default)]
struct Histogram {
    /// Observations per bucket, not cumulative; the last is beyond all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Sum in microseconds.
    sum: AtomicU64,
}

impl Histogram {
    fn observe(&self, from: Timestamp, to: Timestamp) {
        // A clock that was set back makes an observation of nothing.
        let micros = u64::try_from(to.duration_since(from).as_micros()).unwrap_or(0);
        let seconds = micros as f64 / 1e6;
        let bucket = BOUNDS.iter().take_while(|bound| seconds > **bound).count();
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    fn render(&self, out: &mut String, name: &str, mode: Mode) {
        let mut count = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "{name}_bucket{{mode=\"{mode}\",le=\"{bound}\"}} {count}"
            );
        }
        count += self.buckets[BOUNDS.len()].load(Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{mode=\"{mode}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{mode=\"{mode}\"}} {sum}");
        let _ = writeln!(out, "{name}_count{{mode=\"{mode}\"}} {count}");
    }
}

/// What the scheduler counts since it leads.
#[derive(Debug, Default)]
pub struct Metrics {
    ended: [[AtomicU64; Status::ALL.len()]; MODES.len()],
    wait: [Histogram; MODES.len()],
    duration: [Histogram; MODES.len()],
    reconciled: AtomicU64,
    reconcile_runs: AtomicU64,
}

/// What is read at the moment of asking.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// Waiting jobs, by mode.
    pub queued: [usize; MODES.len()],
    /// Running jobs, likewise.
    pub running: [usize; MODES.len()],
    /// DSCP values held.
    pub dscp_held: usize,
    /// DSCP values that there are.
    pub dscp_all: usize,
    /// Viewers with a live stream.
    pub viewers: usize,
}

impl Metrics {
    /// A job is over.
    pub fn ended(&self, job: &FinishedJob) {
        let mode = job.mode as usize;
        self.ended[mode][job.status as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(started) = job.started_at {
            self.wait[mode].observe(job.created_at, started);
            self.duration[mode].observe(started, job.finished_at);
        }
    }

    /// What dead jobs left was looked for, and `removed` things were removed.
    pub fn reconciled(&self, removed: usize) {
        self.reconcile_runs.fetch_add(1, Ordering::Relaxed);
        self.reconciled.fetch_add(removed as u64, Ordering::Relaxed);
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::new();
        head(&mut out, "tsim_jobs", "gauge", "Jobs that wait or run.");
        for mode in MODES {
            let (queued, running) = (gauges.queued[mode as usize], gauges.running[mode as usize]);
            let _ = writeln!(
                out,
                "tsim_jobs{{mode=\"{mode}\",state=\"queued\"}} {queued}"
            );
            let _ = writeln!(
                out,
                "tsim_jobs{{mode=\"{mode}\",state=\"running\"}} {running}"
            );
        }
        self.render_ended(&mut out);
        let name = "tsim_job_wait_seconds";
        head(&mut out, name, "histogram", "Time from submit to start.");
        for mode in MODES {
            self.wait[mode as usize].render(&mut out, name, mode);
        }
        let name = "tsim_job_duration_seconds";
        head(&mut out, name, "histogram", "Time from start to end.");
        for mode in MODES {
            self.duration[mode as usize].render(&mut out, name, mode);
        }
        self.render_totals(&mut out, gauges);
        out
    }

    /// The figures that no mode divides.
    fn render_totals(&self, out: &mut String, gauges: &Gauges) {
        let counter = |name: &AtomicU64| name.load(Ordering::Relaxed);
        let (runs, removed) = (counter(&self.reconcile_runs), counter(&self.reconciled));
        #[rustfmt::skip]
        let totals = [
            ("tsim_dscp_held", "gauge", "DSCP values held.", gauges.dscp_held as u64),
            ("tsim_dscp_values", "gauge", "DSCP values that jobs may hold.", gauges.dscp_all as u64),
            ("tsim_viewers", "gauge", "Viewers with a live stream.", gauges.viewers as u64),
            ("tsim_reconcile_runs_total", "counter", "Looks for what dead jobs left.", runs),
            ("tsim_reconciled_total", "counter", "Things of dead jobs removed.", removed),
        ];
        for (name, kind, help, value) in totals {
            head(out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
    }

    fn render_ended(&self, out: &mut String) {
        let name = "tsim_jobs_ended_total";
        head(
            out,
            name,
            "counter",
            "Jobs that are over since this scheduler leads.",
        );
        for mode in MODES {
            for status in Status::ALL.into_iter().filter(|status| status.is_final()) {
                let count = self.ended[mode as usize][status as usize].load(Ordering::Relaxed);
                let status = status.as_str().to_ascii_lowercase();
                let _ = writeln!(out, "{name}{{mode=\"{mode}\",status=\"{status}\"}} {count}");
            }
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_in_the_count() {
        let histogram = Histogram::default();
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        for millis in [0, 1, 3, 700, 10_000_000] {
            histogram.observe(at(0), at(millis));
        }
        histogram.observe(at(5), at(0));
        let mut out = String::new();
        histogram.render(&mut out, "h", Mode::Quick);
        for want in [
            "h_bucket{mode=\"quick\",le=\"0.001\"} 3\n",
            "h_bucket{mode=\"quick\",le=\"0.005\"} 4\n",
            "h_bucket{mode=\"quick\",le=\"1\"} 5\n",
            "h_bucket{mode=\"quick\",le=\"3600\"} 5\n",
            "h_bucket{mode=\"quick\",le=\"+Inf\"} 6\n",
            "h_count{mode=\"quick\"} 6\n",
        ] {
            assert!(out.contains(want), "{want} in\n{out}");
        }
    }

    #[test]
    fn every_series_has_its_head_once() {
        let text = Metrics::default().render(&Gauges::default());
        let mut names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(names.iter().any(|name| series.starts_with(name)), "{line}");
        }
    }
}
