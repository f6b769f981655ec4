//! The tree and the comparison against plain comparison of two byte vectors.

use proptest::prelude::*;

use super::*;

const PAGE: usize = PAGE_SIZE as usize;

fn scheme(algorithm: Algorithm) -> Scheme {
    Scheme { algorithm, key: *b"0123456789abcdef" }
}

fn tree(scheme: &Scheme, bytes: &[u8], window: ByteRange) -> Tree {
    let here = &bytes[(window.start as usize).min(bytes.len())..(window.end as usize).min(bytes.len())];
    Tree::new(scheme, window.start, here.chunks(PAGE).map(|page| scheme.leaf(page)).collect())
}

fn answer(tree: &Tree, question: &Question) -> Vec<Node> {
    question.ranges.iter().flat_map(|range| tree.nodes(question.level, *range)).collect()
}

/// Compares two images of one window, and answers what differs and how many nodes were asked for in all.
fn compare(algorithm: Algorithm, source: &[u8], target: &[u8]) -> (Vec<Differing>, usize) {
    let scheme = scheme(algorithm);
    let length = source.len() as u64;
    let window = ByteRange::new(0, span(TOP)).clamp_to(length);
    let seen = &target[..target.len().min(source.len())];
    let trees = [source, seen].map(|bytes| tree(&scheme, bytes, window));
    let mut comparison = Comparison::new(window, length);
    let mut nodes = 0;
    while let Some(question) = comparison.question() {
        nodes += question.nodes();
        let [source, target] = [0, 1].map(|side| answer(&trees[side], &question));
        comparison.answer(&source, &target).expect("as many as were asked for");
    }
    (comparison.differing(), nodes)
}

/// Makes the target what the source is, by what differs alone.
fn apply(source: &[u8], target: &[u8], differing: &[Differing]) -> Vec<u8> {
    let mut made = target.to_vec();
    made.resize(source.len(), 0);
    for Differing { range, how } in differing {
        let range = range.start as usize..range.end as usize;
        match how {
            Difference::Bytes => made[range.clone()].copy_from_slice(&source[range]),
            Difference::Clear => made[range].fill(0),
            Difference::Fill => {
                assert!(made[range.clone()].iter().all(|byte| *byte == 0), "the target holds zeroes");
                made[range.clone()].copy_from_slice(&source[range]);
            }
        }
    }
    made
}

#[test]
fn equal_images_cost_one_node() {
    for length in [1, 4096, 70_000, 3 << 20] {
        let image: Vec<u8> = (0..length).map(|at: usize| (at / 7) as u8).collect();
        assert_eq!(compare(Algorithm::Xxh3, &image, &image), (Vec::new(), 1), "{length}");
    }
    assert_eq!(compare(Algorithm::Xxh3, &[], &[1; 5000]), (Vec::new(), 0));
}

#[test]
fn one_change_costs_one_way_down() {
    let image: Vec<u8> = (0..4 << 20).map(|at: usize| (at / 7 + 1) as u8).collect();
    let mut other = image.clone();
    other[123 * PAGE + 5] ^= 1;
    for algorithm in [Algorithm::Xxh3, Algorithm::Blake3] {
        let (differing, nodes) = compare(algorithm, &image, &other);
        let range = ByteRange::of_pages(123..124);
        assert_eq!(differing, [Differing { range, how: Difference::Bytes }]);
        assert_eq!(nodes, 1 + 4 + 2 * FAN_OUT as usize, "4 MiB have four nodes of 1 MiB");
    }
}

#[test]
fn scattered_changes_cost_a_tenth_of_themselves() {
    // One page in a hundred, as in the case that the fan-out was chosen for, by the hashes of the pages alone.
    let scheme = scheme(Algorithm::Xxh3);
    let leaf =
        |page: u64, changed: bool| scheme.leaf(&[&page.to_le_bytes()[..], &[u8::from(changed), 1]].concat());
    let mut random = 1u64;
    let mut changed = |_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33).is_multiple_of(100)
    };
    let pages = span(TOP) / PAGE_SIZE;
    let marks: Vec<bool> = (0..pages).map(&mut changed).collect();
    let tree = |with: bool| {
        Tree::new(&scheme, 0, (0..pages).map(|page| leaf(page, with && marks[page as usize])).collect())
    };
    let (source, target) = (tree(true), tree(false));
    let mut comparison = Comparison::new(ByteRange::new(0, span(TOP)), span(TOP));
    let mut bytes = 0;
    while let Some(question) = comparison.question() {
        bytes += question.nodes() * Node::LEN + question.ranges.len() * 16;
        comparison.answer(&answer(&source, &question), &answer(&target, &question)).expect("fits");
    }
    let changes = marks.iter().filter(|mark| **mark).count();
    let found = comparison.differing().iter().map(|differing| differing.range.len()).sum::<u64>();
    assert_eq!(found, changes as u64 * PAGE_SIZE);
    assert!(bytes * 10 < changes * PAGE, "{bytes} bytes of hashes for {changes} pages");
}

#[test]
fn zeroes_are_told_without_being_asked_for_page_by_page() {
    let image = vec![1; 4 << 20];
    let (differing, nodes) = compare(Algorithm::Xxh3, &image, &[]);
    assert_eq!(differing, [Differing { range: ByteRange::new(0, 4 << 20), how: Difference::Fill }]);
    assert_eq!(nodes, 1);
    let (differing, nodes) = compare(Algorithm::Xxh3, &vec![0; 4 << 20], &image);
    assert_eq!(differing, [Differing { range: ByteRange::new(0, 4 << 20), how: Difference::Clear }]);
    assert_eq!(nodes, 1);
}

#[test]
fn the_two_algorithms_and_two_keys_give_other_hashes() {
    let schemes = [scheme(Algorithm::Xxh3), scheme(Algorithm::Blake3)];
    let other = Scheme { key: [7; 16], ..schemes[0] };
    let hashes = [schemes[0].leaf(b"x"), schemes[1].leaf(b"x"), other.leaf(b"x")];
    assert!(hashes[0] != hashes[1] && hashes[0] != hashes[2]);
    for scheme in schemes {
        assert_eq!(scheme.leaf(&[0; PAGE]), Node::ZERO);
        assert_eq!(scheme.leaf(b"x\0\0"), scheme.leaf(b"x"), "zeroes follow the end");
        assert_eq!(scheme.inner(&[Node::ZERO; 16]), Node::ZERO);
        assert_ne!(scheme.inner(&[scheme.leaf(b"x")]), scheme.inner(&[Node::ZERO, scheme.leaf(b"x")]));
    }
}

#[test]
fn hashes_are_those_of_the_specification() {
    // docs/PROTOCOL.md gives these for whoever writes a second implementation.
    let hex = |node: Node| node.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let page: Vec<u8> = (0..PAGE).map(|at| at as u8).collect();
    let of = |algorithm| {
        let scheme = scheme(algorithm);
        let leaf = scheme.leaf(&page);
        [hex(leaf), hex(scheme.inner(&[leaf]))]
    };
    assert_eq!(of(Algorithm::Xxh3), ["dca61f078c89f02967a4de8cf69ba0e2", "80e5112eb3ada614d28cf861103d5cae"]);
    assert_eq!(
        of(Algorithm::Blake3),
        ["69af7fcf9790823c80de74d5dcbab3b2", "5d3b22b830817a15fcc07b293ec4f083"]
    );
}

#[test]
fn answers_of_another_length_are_refused() {
    let mut comparison = Comparison::new(ByteRange::new(0, 1 << 20), 1 << 20);
    for (source, target) in [(0, 1), (1, 0), (2, 1), (1, 2)] {
        let nodes = [Node([1; 16]); 2];
        assert!(comparison.answer(&nodes[..source], &nodes[..target]).is_err());
    }
    assert_eq!(comparison.question().expect("still open").nodes(), 1);
}

#[test]
fn windows_cover_a_region_once() {
    let length = 3 * span(TOP) + 5;
    let windows: Vec<ByteRange> = windows(length).collect();
    assert_eq!(windows.len(), 4);
    assert_eq!(windows[3], ByteRange::new(3 * span(TOP), length));
    assert_eq!(ByteRange::total(&windows), length);
    let question = Comparison::new(windows[3], length).question().expect("it has a byte");
    assert_eq!((question.level, question.nodes()), (TOP, 1));
    assert_eq!(super::windows(0).count(), 0);
}

/// Bytes of few values, so that pages are equal, zero and different; and a length that fits no page.
fn image() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(0u8..3, 0..80), 0usize..PAGE).prop_map(|(pages, rest)| {
        let mut image: Vec<u8> = pages.iter().flat_map(|byte| vec![*byte; PAGE]).collect();
        image.truncate(image.len().saturating_sub(rest));
        image
    })
}

proptest! {
    #[test]
    fn what_differs_is_what_a_plain_comparison_finds(
        source in image(), target in image(), flips in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
        blake: bool,
    ) {
        let mut source = source;
        for flip in flips {
            if !source.is_empty() {
                let at = flip.index(source.len());
                source[at] ^= 0x80;
            }
        }
        let algorithm = if blake { Algorithm::Blake3 } else { Algorithm::Xxh3 };
        let (differing, _) = compare(algorithm, &source, &target);
        prop_assert_eq!(&apply(&source, &target, &differing), &source);
        // And nothing else, page by page; a fill or a clear may span pages that are equal, being zero.
        let mut extended = target;
        extended.resize(source.len(), 0);
        for Differing { range, how } in &differing {
            if *how == Difference::Bytes {
                for page in range.split(PAGE_SIZE) {
                    let page = page.start as usize..page.end as usize;
                    prop_assert_ne!(&source[page.clone()], &extended[page]);
                }
            }
        }
        for pair in differing.windows(2) {
            prop_assert!(pair[0].range.end <= pair[1].range.start);
        }
    }
}
