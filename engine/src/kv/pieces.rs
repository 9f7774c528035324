//! A vector in pieces.

/// Elements of one piece.
const PIECE_LEN: usize = 1 << 10;

/// A vector in pieces, since a long one that grows moves all that it holds into fresh memory, which the kernel has to clear first (an eighth of
/// the time under transactions).
#[derive(Clone, Debug)]
pub(super) struct Pieces<T> {
    /// All but the last are full.
    pieces: Vec<Vec<T>>,
}

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<T> Pieces<T> {
    pub(super) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE_LEN + last.len())
    }

    pub(super) fn push(&mut self, element: T) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE_LEN => last.push(element),
            _ => {
                let mut piece = Vec::with_capacity(PIECE_LEN);
                piece.push(element);
                self.pieces.push(piece);
            }
        }
    }

    pub(super) fn at(&self, place: u32) -> &T {
        &self.pieces[place as usize / PIECE_LEN][place as usize % PIECE_LEN]
    }

    pub(super) fn at_mut(&mut self, place: u32) -> &mut T {
        &mut self.pieces[place as usize / PIECE_LEN][place as usize % PIECE_LEN]
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.pieces.first()?.first()
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.pieces.last()?.last()
    }

    /// What is in it, in order.
    pub(super) fn pieces(&self) -> &[Vec<T>] {
        &self.pieces
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }
}
