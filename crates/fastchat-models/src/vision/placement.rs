//! Where a picture's rows stand among the tokens: what replaces its marker in a prompt, and by which positions ropes turn.
//! Integers and strings only; tokenising is the caller's.

use serde::Serialize;

use super::processor::Fitting;

/// Where a picture's rows stand.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placement {
    /// Token that a chat template writes for a picture.
    pub marker: u32,
    /// Token whose embedding a picture's rows replace.
    pub token: u32,
    /// What is written in place of the marker.
    pub framing: Framing,
    /// By which positions ropes turn.
    pub turns: Turns,
    /// What a picture's tokens see of each other.
    pub sight: Sight,
}

/// What is written in place of the marker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Framing {
    /// The rows, and what stands around them.
    Between {
        /// Before them.
        before: Vec<Piece>,
        /// After them.
        after: Vec<Piece>,
    },
    /// The marker: the picture is only looked at.
    Marker,
    /// Line by line.
    Lines {
        /// After each line but the last.
        line_end: String,
        /// After the last.
        end: String,
    },
    /// Each tile named by its place, then the whole.
    NamedTiles {
        /// Before each tile and after the last.
        fence: String,
        /// Before the whole.
        whole: String,
    },
}

/// By which positions ropes turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Turns {
    /// The tokens'.
    Sequential,
    /// A picture's rows by their lines and columns; what follows goes on after the longer side (arXiv 2409.12191).
    Grid,
}

/// What a picture's tokens see of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Sight {
    /// Those before them.
    Causal,
    /// All.
    Whole,
}

impl Framing {
    /// The rows alone.
    pub fn plain() -> Self {
        Self::Between { before: Vec::new(), after: Vec::new() }
    }
}

/// A part of what replaces a marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Piece {
    /// A text with the model's own special tokens.
    Text(String),
    /// A token.
    Token(u32),
    /// So many tokens in whose place the next rows stand.
    Rows(usize),
}

/// (lines, columns) of a picture's rows in the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Lines.
    pub lines: usize,
    /// Columns.
    pub columns: usize,
}

impl Placement {
    /// What replaces the marker of a picture of this fitting, whose tiles have a grid of rows.
    pub fn pieces(&self, fitting: &Fitting, grid: Grid) -> Vec<Piece> {
        let rows = grid.lines * grid.columns;
        match &self.framing {
            Framing::Between { before, after } => {
                let all = Piece::Rows(rows * fitting.count());
                before.iter().cloned().chain([all]).chain(after.iter().cloned()).collect()
            }
            Framing::Marker => vec![Piece::Token(self.marker)],
            Framing::Lines { line_end, end } => {
                let line = |line: usize| {
                    let after = if line + 1 == grid.lines { end } else { line_end };
                    [Piece::Rows(grid.columns), Piece::Text(after.clone())]
                };
                (0..grid.lines).flat_map(line).collect()
            }
            Framing::NamedTiles { fence, whole } => named_tiles(fitting.tiles, rows, fence, whole),
        }
    }
}

fn named_tiles((lines, columns): (usize, usize), rows: usize, fence: &str, whole: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    for line in 1..=lines {
        for column in 1..=columns {
            let named = format!("{text}{fence}<row_{line}_col_{column}>");
            pieces.extend([Piece::Text(named), Piece::Rows(rows)]);
            text.clear();
        }
        text.push('\n');
    }
    if lines > 0 {
        text.push('\n');
    }
    pieces.extend([Piece::Text(format!("{text}{fence}{whole}")), Piece::Rows(rows), Piece::Text(fence.to_owned())]);
    pieces
}

/// The positions by which ropes turn the tokens of one prompt and of what follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RopeMap {
    prompt: Vec<[u32; 3]>,
    next: u32,
}

impl RopeMap {
    /// For a prompt of `tokens` whose pictures, in order, begin at a token and have a grid of rows.
    pub fn new(tokens: usize, pictures: &[(usize, Grid)]) -> Self {
        let mut map = Self { prompt: Vec::with_capacity(tokens), next: 0 };
        for &(start, grid) in pictures {
            map.text(start);
            let first = map.next;
            let place = |i: usize| [first, first + (i / grid.columns) as u32, first + (i % grid.columns) as u32];
            map.prompt.extend((0..grid.lines * grid.columns).map(place));
            map.next += grid.lines.max(grid.columns) as u32;
        }
        map.text(tokens);
        map
    }

    fn text(&mut self, end: usize) {
        let more = end.saturating_sub(self.prompt.len()) as u32;
        self.prompt.extend((self.next..self.next + more).map(|position| [position; 3]));
        self.next += more;
    }

    /// Of the token at `position`.
    pub fn at(&self, position: usize) -> [u32; 3] {
        let after = || [self.next + (position - self.prompt.len()) as u32; 3];
        self.prompt.get(position).copied().unwrap_or_else(after)
    }
}

#[cfg(test)]
mod tests {
    use super::{Grid, Piece, RopeMap, named_tiles};

    #[test]
    fn what_follows_a_picture_goes_on_after_its_longer_side() {
        let map = RopeMap::new(10, &[(2, Grid { lines: 2, columns: 3 })]);
        let at: Vec<_> = (0..11).map(|i| map.at(i)).collect();
        assert_eq!(at[..4], [[0; 3], [1; 3], [2, 2, 2], [2, 2, 3]]);
        assert_eq!(at[5..8], [[2, 3, 2], [2, 3, 3], [2, 3, 4]]);
        assert_eq!(at[8..], [[5; 3], [6; 3], [7; 3]]);
        let two = RopeMap::new(5, &[(0, Grid { lines: 1, columns: 2 }), (2, Grid { lines: 2, columns: 1 })]);
        assert_eq!((0..6).map(|i| two.at(i)[1]).collect::<Vec<_>>(), [0, 0, 2, 3, 4, 5]);
        assert_eq!(RopeMap::new(2, &[]).at(5), [5; 3]);
    }

    #[test]
    fn tiles_are_named_by_line_and_column() {
        let text = |text: &str| Piece::Text(text.to_owned());
        let cut = named_tiles((2, 1), 4, "<f>", "<w>");
        let rows = || Piece::Rows(4);
        assert_eq!(
            cut,
            [
                text("<f><row_1_col_1>"),
                rows(),
                text("\n<f><row_2_col_1>"),
                rows(),
                text("\n\n<f><w>"),
                rows(),
                text("<f>")
            ]
        );
        assert_eq!(named_tiles((0, 0), 4, "<f>", "<w>"), [text("<f><w>"), rows(), text("<f>")]);
    }
}
