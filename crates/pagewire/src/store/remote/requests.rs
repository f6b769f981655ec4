//! Reads that are too large for one request: several are made.

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::MAX_RANGES;

/// The most that one request asks for, in bytes: below what a server answers, and much more than what
/// the cost of a request can be seen in.
const LONGEST: u64 = 8 << 20;

/// The ranges of each request that together ask for `ranges`.
pub(super) fn requests(ranges: Vec<ByteRange>) -> Vec<Vec<ByteRange>> {
    let total = ByteRange::total(&ranges);
    if total <= LONGEST && ranges.len() <= MAX_RANGES {
        return vec![ranges];
    }
    let mut requests = vec![Vec::new()];
    let mut room = LONGEST;
    for piece in ranges.iter().flat_map(|range| range.split(LONGEST)) {
        if piece.len() > room || requests.last().is_some_and(|request| request.len() == MAX_RANGES) {
            requests.push(Vec::new());
            room = LONGEST;
        }
        room -= piece.len();
        requests.last_mut().expect("there is one from the beginning").push(piece);
    }
    requests
}
