//! The screen: timeline, turns, machine, console.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::index::Index;
use super::scene::Printed;
use super::state::{Mode, State};
use crate::kinds::Kind;

/// Heights of the timeline's bars.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const HELP: &str = "\
Up Down j k      turn by turn           Left Right h l   stop by stop
PgUp PgDn b SPC  page by page           Home End G       to the first, the last turn
g :              to a position: 1234, 12.5s, end
/                search turns (regular expression); n N  next, previous match
f                choose a kind of turns; [ ] previous, next one
q Ctrl-C         quit

The machine is shown as it is after the turn at the cursor, replayed there.";

/// The colour of a kind.
fn colour(kind: Kind) -> Color {
    match kind {
        Kind::Frame => Color::Green,
        Kind::Console => Color::Yellow,
        Kind::Disk => Color::Blue,
        Kind::Random | Kind::Entropy => Color::Magenta,
        Kind::Forced => Color::Red,
        Kind::Clock => Color::Cyan,
        _ => Color::DarkGray,
    }
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, state: &mut State, index: &mut Index, printed: &Printed, title: &str) {
    let [top, bar, middle, console, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Min(8),
        Constraint::Percentage(25),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [turns, machine] = Layout::horizontal([Constraint::Percentage(52), Constraint::Min(20)]).areas(middle);
    frame.render_widget(Line::from(title.to_owned()).bold(), top);
    frame.render_widget(timeline(state, index, bar.width), bar);
    draw_turns(frame, turns, state, index);
    draw_machine(frame, machine, state);
    draw_console(frame, console, state, printed);
    frame.render_widget(status(state, index), bottom);
    if state.mode == Mode::Help {
        let columns = HELP.lines().map(|line| line.chars().count()).max().unwrap_or_default();
        let rows = HELP.lines().count();
        let area = middle.centered(
            Constraint::Length(columns as u16 + 2),
            Constraint::Length(rows as u16 + 2),
        );
        frame.render_widget(Clear, area);
        frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title("keys")), area);
    }
}

/// A bar over the whole recording by guest time: how many turns, and of which kind the rarest, with the cursor below.
fn timeline(state: &State, index: &Index, width: u16) -> Text<'static> {
    let width = usize::from(width.max(1));
    let rows = index.rows();
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Text::from("no turns");
    };
    let span = (last.guest_ns - first.guest_ns).max(1);
    let column = |ns: u64| ((u128::from(ns - first.guest_ns) * (width as u128 - 1)) / u128::from(span)) as usize;
    let begins: Vec<usize> = (0..=width)
        .map(|at| {
            let from = first.guest_ns + (u128::from(span) * at as u128 / width as u128) as u64;
            if at == width {
                rows.len()
            } else {
                rows.partition_point(|row| row.guest_ns < from)
            }
        })
        .collect();
    let most = begins
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or(1)
        .max(1);
    let bars: Vec<Span<'static>> = begins
        .windows(2)
        .map(|pair| {
            let count = pair[1] - pair[0];
            if count == 0 {
                return Span::raw(" ");
            }
            // Of a long stretch, a sample is enough to see what happens there.
            let step = (count / 512).max(1);
            let rarest = rows[pair[0]..pair[1]]
                .iter()
                .step_by(step)
                .filter_map(|row| row.kinds.rarest())
                .max();
            let height = BLOCKS[(count * (BLOCKS.len() - 1)).div_ceil(most)];
            Span::styled(
                height.to_string(),
                rarest.map_or(Style::new(), |kind| Style::new().fg(colour(kind))),
            )
        })
        .collect();
    let here = rows.get(state.row).map_or(0, |row| column(row.guest_ns));
    let marker = format!("{}▲", " ".repeat(here));
    let left = seconds(first.guest_ns);
    let right = seconds(last.guest_ns);
    let gap = width.saturating_sub(left.len() + right.len());
    Text::from(vec![
        Line::from(bars),
        Line::from(marker),
        Line::from(format!("{left}{}{right}", " ".repeat(gap))).dim(),
    ])
}

fn seconds(ns: u64) -> String {
    format!("{}.{:06}s", ns / 1_000_000_000, ns % 1_000_000_000 / 1000)
}

fn draw_turns(frame: &mut Frame<'_>, area: Rect, state: &mut State, index: &mut Index) {
    let block = Block::bordered().title("turns");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let height = usize::from(inner.height).max(1);
    state.page = height;
    let first = state
        .row
        .saturating_sub(height / 2)
        .min(index.rows().len().saturating_sub(height));
    let mut lines = Vec::new();
    for number in first..(first + height).min(index.rows().len()) {
        let row = index.rows()[number];
        let style = row
            .kinds
            .rarest()
            .map_or(Style::new(), |kind| Style::new().fg(colour(kind)));
        let text = index
            .text(number)
            .map_or_else(|error| format!("{error:#}"), str::to_owned);
        let name = row.kinds.rarest().map_or(String::new(), Kind::name);
        let line = Line::from(vec![
            Span::raw(format!("{:>10} {:>14} ", row.stop, seconds(row.guest_ns))),
            Span::styled(format!("{name:<8} {text}"), style),
        ]);
        lines.push(if number == state.row {
            line.add_modifier(Modifier::REVERSED)
        } else {
            line
        });
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

fn draw_machine(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let Some(scene) = &state.scene else {
        let text = Paragraph::new("the machine is on its way").block(Block::bordered().title("machine"));
        return frame.render_widget(text, area);
    };
    let old = if scene.stop == state.stop {
        ""
    } else {
        ", not at the cursor yet"
    };
    let halted = if scene.halted { ", halted" } else { "" };
    let took = format!(", reached in {:.2} s", scene.took.as_secs_f64());
    let title = format!("stop {}, {}{halted}{took}{old}", scene.stop, seconds(scene.guest_ns));
    let mut lines: Vec<Line<'_>> = scene
        .registers
        .chunks(2)
        .map(|pair| {
            let shown = |(name, value): &(&str, u64)| format!("{name:>6} {value:016x}");
            Line::from(pair.iter().map(shown).collect::<Vec<_>>().join("  "))
        })
        .collect();
    let ring = if scene.is_user { 3 } else { 0 };
    let task = scene.task.as_ref().map_or(String::new(), |task| format!(", {task}"));
    lines.push(Line::from(format!("ring {ring}{task}")));
    let mut function = String::new();
    for instruction in &scene.code {
        if let Some(symbol) = &instruction.symbol {
            let name = symbol.split('+').next().unwrap_or_default();
            if name != function {
                lines.push(Line::from(format!("{symbol}:")).bold());
                name.clone_into(&mut function);
            }
        }
        lines.push(Line::from(format!(
            "{:016x}  {}",
            instruction.address, instruction.text
        )));
    }
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

fn draw_console(frame: &mut Frame<'_>, area: Rect, state: &State, printed: &Printed) {
    let block = Block::bordered().title("console");
    let count = usize::from(block.inner(area).height);
    let lines: Vec<Line<'_>> = printed.lines(state.stop, count).into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn status(state: &State, index: &Index) -> Line<'static> {
    match &state.mode {
        Mode::Jump(text) => Line::from(format!("go to: {text}_")),
        Mode::Search(text) => Line::from(format!("/{text}_")),
        Mode::Move | Mode::Help => {
            let kind = state
                .kind()
                .map_or(String::new(), |kind| format!("  kind {}", kind.name()));
            let walking = state
                .walking
                .map_or(String::new(), |stop| format!("  replaying, at stop {stop}"));
            let cut = if index.is_cut() {
                "  (not all turns are listed)"
            } else {
                ""
            };
            Line::from(format!(
                "turn {} of {}{cut}{kind}{walking}  {}",
                state.row + 1,
                index.rows().len(),
                state.message
            ))
        }
    }
}
