package cache

import "slices"

const (
	maxAhead   = 6        // flights ahead of the readers, for each store and each content
	maxWindow  = 32 << 20 // bytes ahead of one sequential reader
	maxPiece   = 32       // chunks of one such flight: 4 MiB
	maxCursors = 8        // sequences remembered for each content

	// A read this near to where a sequence stands belongs to it: the kernel
	// sends its own read-ahead out of order.
	slackBehind = 512 << 10
	slackBeyond = 256 << 10
)

// cursor is one reader's sequence of reads, as far as it can be told.
type cursor struct {
	next int64 // the end of what was read
	run  int64 // bytes read in sequence
}

// touch notes a read, with mu held, and reports whether it continues a
// sequence. The last one touched comes first.
func (c *content) touch(off int64, n int) bool {
	for i, cur := range c.cursors {
		if off < cur.next-slackBehind || off > cur.next+slackBeyond {
			continue
		}
		if end := off + int64(n); end > cur.next {
			cur.run += min(end-cur.next, int64(n))
			cur.next = end
		}
		c.cursors = slices.Insert(slices.Delete(c.cursors, i, i+1), 0, cur)
		return true
	}
	c.cursors = slices.Insert(c.cursors, 0, &cursor{next: off + int64(n), run: int64(n)})
	c.cursors = c.cursors[:min(len(c.cursors), maxCursors)]
	return false
}

// pump starts the flights that evidence asks for, with mu held: twice as
// far ahead of each sequence as it is long, and everything if somebody waits for it.
func (c *content) pump() {
	if c.whole || c.missing == 0 || c.failed != nil || c.ctx.Err() != nil || c.avoiding() {
		return
	}
	n := len(c.state)
	for _, cur := range c.cursors {
		if cur.run < 2*chunkSize {
			continue
		}
		window := min(2*cur.run, maxWindow)
		from := int(cur.next / chunkSize)
		c.prefetch(from, min(n, int((cur.next+window)/chunkSize)), int(window/chunkSize/4))
	}
	if c.fillers > 0 {
		c.prefetch(c.prefix, n, maxPiece)
	}
}

// prefetch fetches what is absent between two chunks in pieces, as far as
// flights are left.
func (c *content) prefetch(from, to, piece int) {
	piece = max(1, min(piece, maxPiece))
	for i := from; i < to && c.ahead < maxAhead; i++ {
		if c.state[i] != absent {
			continue
		}
		end := i + 1
		for end < to && end-i < piece && c.state[end] == absent {
			end++
		}
		// A rest at the edge of the window grows into a piece as the window moves.
		if end == to && to < len(c.state) && end-i < piece && c.ahead > 0 {
			return
		}
		c.launch(i, end, true)
		i = end - 1
	}
}
