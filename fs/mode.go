package fs

import "sync"

// ioMode is how the kernel reads an inode's open files.
type ioMode uint8

const (
	buffered    ioMode = iota // through the page cache; the daemon answers
	passthrough               // the kernel reads the cache's file itself
)

// modeLatch keeps one I/O mode per inode from its first open until its last
// close: today's kernels answer EIO when a file is opened for passthrough
// while a page-cached handle on its inode is open, and the other way round.
type modeLatch struct {
	mu   sync.Mutex
	open int
	mode ioMode
}

// acquire joins the mode in force, or sets it to want if nothing is open.
func (l *modeLatch) acquire(want ioMode) ioMode {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == 0 {
		l.mode = want
	}
	l.open++
	return l.mode
}

func (l *modeLatch) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
}

// inUse reports whether anything has the inode open.
func (l *modeLatch) inUse() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open > 0
}
