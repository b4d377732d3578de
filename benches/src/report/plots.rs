//! The plots, each an SVG to stand in the page.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::measure::Line;
use crate::rows::compute::{Compute, PROGRAMS};
use crate::rows::memory::{Kinds, Memory};
use crate::rows::reset::Reset;
use crate::rows::sites::{self, Site};
use crate::rows::throughput::{CONNECTIONS, Throughput, find};
use crate::stand::{Measured, Way};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 920;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(34, 40, 49);
const GREY: RGBColor = RGBColor(120, 128, 138);
const PALE: RGBColor = RGBColor(222, 226, 230);
const OURS: RGBColor = RGBColor(214, 93, 14);
const COLOURS: [RGBColor; 7] = [
    RGBColor(69, 123, 157),
    RGBColor(214, 93, 14),
    RGBColor(106, 153, 78),
    RGBColor(155, 93, 143),
    RGBColor(233, 184, 74),
    RGBColor(120, 128, 138),
    RGBColor(90, 60, 50),
];

/// Draws, and gives the SVG's text.
fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    // As wide as the page allows.
    let sized = format!("width=\"{WIDTH}\" height=\"{height}\"");
    Ok(text.replacen(
        &sized,
        &format!(
            "role=\"img\" style=\"width:100%;max-width:{WIDTH}px;height:auto;background:#fff\""
        ),
        1,
    ))
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("plotting: {error}")
}

fn text(
    area: &Area<'_>,
    what: &str,
    at: (i32, i32),
    size: u32,
    colour: RGBColor,
    anchor: HPos,
) -> Result<()> {
    let style = (FONT, size)
        .into_font()
        .color(&colour)
        .pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(what.to_owned(), at, style))
        .map_err(failed)
}

fn bar(area: &Area<'_>, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
    area.draw(&Rectangle::new([from, to], colour.filled()))
        .map_err(failed)
}

fn colour(way: Way) -> RGBColor {
    match way {
        Way::Kvm => OURS,
        Way::Cached | Way::Native | Way::Spin => COLOURS[0],
        Way::Wasm => COLOURS[3],
        Way::Fastcgi => COLOURS[2],
        Way::Cgi => COLOURS[5],
    }
}

const LABELS: i32 = 250;
const BAR: i32 = 22;

/// Bars or points that are compared, below a title.
struct Group<T> {
    title: String,
    rows: Vec<(&'static str, RGBColor, T)>,
}

/// Requests/s, a group of bars for each number of connections.
pub fn throughput(rows: &[Throughput]) -> Result<String> {
    bars(&throughput_groups(rows, |row| row.requests_per_second))
}

/// p50, p99 and p99.9 as points on a logarithmic scale, a line for each way.
pub fn latency(rows: &[Throughput]) -> Result<String> {
    points(&throughput_groups(rows, |row| {
        [row.p50_us, row.p99_us, row.p999_us]
    }))
}

fn throughput_groups<T>(rows: &[Throughput], get: impl Fn(&Throughput) -> T) -> Vec<Group<T>> {
    let group = |connections| Group {
        title: plural(connections),
        rows: Way::ALL
            .into_iter()
            .filter_map(|way| Some((way.title(), colour(way), get(find(rows, way, connections)?))))
            .collect(),
    };
    CONNECTIONS.into_iter().map(group).collect()
}

/// Requests/s of a page.
pub fn site_throughput(site: &Site) -> Result<String> {
    bars(&site_groups(site, |m| m.requests_per_second))
}

/// p50, p90 and p99 of a page.
pub fn site_latency(site: &Site) -> Result<String> {
    points(&site_groups(site, |m| [m.p50_us, m.p90_us, m.p99_us]))
}

fn site_groups<T>(site: &Site, get: impl Fn(&Measured) -> T) -> Vec<Group<T>> {
    let group = |connections| Group {
        title: plural(connections),
        rows: site
            .loads
            .iter()
            .filter(|load| load.connections == connections)
            .map(|load| (load.way.title(), site_colour(load.way), get(&load.measured)))
            .collect(),
    };
    sites::CONNECTIONS.into_iter().map(group).collect()
}

fn site_colour(way: sites::Way) -> RGBColor {
    match way {
        way if way.is_ours() => OURS,
        way if way.shares() => COLOURS[0],
        sites::Way::Cgi => COLOURS[5],
        _ => COLOURS[2],
    }
}

fn height<T>(groups: &[Group<T>]) -> i32 {
    let of = |group: &Group<T>| 30 + (BAR + 4) * group.rows.len() as i32;
    groups.iter().map(of).sum()
}

fn bars(groups: &[Group<f64>]) -> Result<String> {
    let all = groups.iter().flat_map(|group| &group.rows);
    let most = all.map(|&(_, _, value)| value).fold(1.0, f64::max);
    let scale = f64::from(WIDTH as i32 - LABELS - 90) / most;
    svg(height(groups) as u32, |area| {
        let mut y = 14;
        for group in groups {
            text(area, &group.title, (0, y), 15, INK, HPos::Left)?;
            y += 14;
            for &(title, colour, value) in &group.rows {
                let end = LABELS + (value * scale) as i32;
                let middle = y + BAR / 2;
                text(area, title, (LABELS - 8, middle), 13, INK, HPos::Right)?;
                bar(area, (LABELS, y), (end.max(LABELS + 1), y + BAR), colour)?;
                let label = super::page::number(value.round());
                text(area, &label, (end + 6, middle), 13, INK, HPos::Left)?;
                y += BAR + 4;
            }
            y += 16;
        }
        Ok(())
    })
}

/// Three times in microseconds as points of which the first is the largest, on a logarithmic scale.
fn points(groups: &[Group<[f64; 3]>]) -> Result<String> {
    let all = || groups.iter().flat_map(|group| &group.rows).map(|row| row.2);
    let low = all()
        .map(|[first, ..]| first)
        .fold(f64::MAX, f64::min)
        .log10()
        .floor();
    let high = all()
        .map(|[.., last]| last)
        .fold(1.0, f64::max)
        .log10()
        .ceil();
    let x = |us: f64| {
        LABELS + ((us.log10() - low) / (high - low) * f64::from(WIDTH as i32 - LABELS - 40)) as i32
    };
    let height = height(groups) + 30;
    svg(height as u32, |area| {
        for power in low as i32..=high as i32 {
            let us = 10f64.powi(power);
            area.draw(&PathElement::new([(x(us), 0), (x(us), height - 26)], PALE))
                .map_err(failed)?;
            let label = if us < 1000.0 {
                format!("{us} µs")
            } else {
                format!("{} ms", us / 1000.0)
            };
            text(area, &label, (x(us), height - 12), 13, GREY, HPos::Center)?;
        }
        let mut y = 14;
        for group in groups {
            text(area, &group.title, (0, y), 15, INK, HPos::Left)?;
            y += 14 + BAR / 2;
            for &(title, colour, [first, second, third]) in &group.rows {
                text(area, title, (LABELS - 8, y), 13, INK, HPos::Right)?;
                bar(area, (x(first), y - 1), (x(third), y + 1), colour)?;
                for (us, size) in [(first, 6), (second, 4), (third, 3)] {
                    area.draw(&Circle::new((x(us), y), size, colour.filled()))
                        .map_err(failed)?;
                }
                y += BAR + 4;
            }
            y += 16 - BAR / 2;
        }
        Ok(())
    })
}

fn plural(connections: usize) -> String {
    if connections == 1 {
        "1 connection".to_owned()
    } else {
        format!("{connections} connections")
    }
}

/// The reset's time over dirty pages, with the lines.
pub fn reset(row: &Reset) -> Result<String> {
    let most = row
        .points
        .iter()
        .map(|point| point.reset_us)
        .fold(1.0, f64::max)
        * 1.08;
    let pages = row
        .points
        .iter()
        .map(|point| point.pages)
        .max()
        .unwrap_or(1);
    let few = Line {
        intercept: row.fixed_us,
        slope: row.per_page_us,
    };
    let all = Line {
        intercept: row.fixed_us_to_1000,
        slope: row.per_page_us_to_1000,
    };
    svg(400, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(0f64..f64::from(pages) * 1.03, 0f64..most)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("pages that the request dirtied")
            .y_desc("reset, host's part, µs")
            .label_style((FONT, 13).into_font().color(&INK))
            .axis_style(GREY)
            .light_line_style(WHITE)
            .bold_line_style(PALE)
            .draw()
            .map_err(failed)?;
        for (line, to, colour, name) in [
            (
                few,
                200.0,
                COLOURS[0],
                format!(
                    "up to 200: {:.2} + {:.3} µs a page",
                    few.intercept, few.slope
                ),
            ),
            (
                all,
                1000.0,
                COLOURS[3],
                format!(
                    "up to 1,000: {:.2} + {:.3} µs a page",
                    all.intercept, all.slope
                ),
            ),
        ] {
            let ends = [0.0, to].map(|x| (x, line.intercept + line.slope * x));
            chart
                .draw_series(LineSeries::new(ends, colour.stroke_width(2)))
                .map_err(failed)?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        let points = row
            .points
            .iter()
            .map(|p| Circle::new((f64::from(p.pages), p.reset_us), 4, OURS.filled()));
        chart
            .draw_series(points)
            .map_err(failed)?
            .label("median")
            .legend(|(x, y)| Circle::new((x + 9, y), 4, OURS.filled()));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font((FONT, 14).into_font().color(&INK))
            .background_style(WHITE)
            .border_style(PALE)
            .draw()
            .map_err(failed)
    })
}

/// Where the memory goes: a bar each for a fork and a bare VM.
pub fn memory(row: &Memory) -> Result<String> {
    let total = |kinds: &Kinds| kinds.values().filter(|kib| **kib > 0.0).sum::<f64>();
    let scale = f64::from(WIDTH as i32 - 230) / total(&row.fork).max(total(&row.unrun_vm));
    let mut bars = vec![("idle fork", &row.fork, row.idle_fork_kib)];
    bars.extend(
        row.run_vm
            .as_ref()
            .zip(row.run_vm_kib)
            .map(|(kinds, kib)| ("bare VM that ran", kinds, kib)),
    );
    bars.push(("bare VM, never run", &row.unrun_vm, row.unrun_vm_kib));
    let legend = 22 + 46 * bars.len() as i32;
    svg(legend as u32 + 30, |area| {
        for (index, (name, kinds, sum)) in bars.into_iter().enumerate() {
            let y = 10 + 46 * index as i32;
            text(area, name, (132, y + 17), 13, INK, HPos::Right)?;
            let mut x = 140.0;
            for ((_, kib), colour) in kinds.iter().zip(COLOURS) {
                let to = x + kib.max(0.0) * scale;
                bar(area, (x as i32, y), (to as i32, y + 34), colour)?;
                if to - x > 34.0 {
                    let label = format!("{kib:.0}");
                    text(
                        area,
                        &label,
                        (((x + to) / 2.0) as i32, y + 17),
                        12,
                        WHITE,
                        HPos::Center,
                    )?;
                }
                x = to;
            }
            text(
                area,
                &format!("{sum:.0} KiB"),
                (x as i32 + 6, y + 17),
                13,
                INK,
                HPos::Left,
            )?;
        }
        let mut x = 140;
        for (name, colour) in row.fork.keys().zip(COLOURS) {
            bar(area, (x, legend), (x + 12, legend + 12), colour)?;
            text(area, name, (x + 17, legend + 6), 13, INK, HPos::Left)?;
            x += 34 + 7 * name.len() as i32;
        }
        Ok(())
    })
}

/// Time over native time, a group of bars a program.
pub fn compute(rows: &[Compute]) -> Result<String> {
    let most = rows
        .iter()
        .filter_map(|row| row.wasm_over_native)
        .fold(1.2, f64::max);
    let scale = f64::from(WIDTH as i32 - 250) / most;
    let height = 64 * rows.len() as i32 + 10;
    svg(height as u32, |area| {
        let one = 180 + scale as i32;
        for (index, row) in rows.iter().enumerate() {
            let y = 64 * index as i32 + 6;
            let title = PROGRAMS
                .iter()
                .find(|(name, _)| *name == row.program)
                .map_or(&*row.program, |(_, what)| what);
            text(area, title, (172, y + BAR), 13, INK, HPos::Right)?;
            let bars = [
                ("VM", Some(row.vm_over_native), OURS),
                ("wasmtime", row.wasm_over_native, COLOURS[3]),
            ];
            for (bar_index, (name, ratio, colour)) in bars.into_iter().enumerate() {
                let Some(ratio) = ratio else { continue };
                let y = y + (BAR + 3) * bar_index as i32;
                let end = 180 + (ratio * scale) as i32;
                bar(area, (180, y), (end, y + BAR), colour)?;
                text(area, name, (188, y + BAR / 2), 12, WHITE, HPos::Left)?;
                text(
                    area,
                    &format!("{ratio:.2}"),
                    (end + 6, y + BAR / 2),
                    13,
                    INK,
                    HPos::Left,
                )?;
            }
        }
        area.draw(&PathElement::new([(one, 0), (one, height)], INK))
            .map_err(failed)
    })
}
