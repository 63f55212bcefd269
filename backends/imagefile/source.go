package imagefile

import (
	"context"
	"fmt"
	"io"
)

const (
	maxReads   = 256      // reads of one call; real images need under ten
	maxBytes   = 32 << 20 // bytes of one call
	maxWindows = 8
)

// source is a bounded view of an image: it keeps what it read, so that
// neighbours cost no read, and gives up on an image that asks for
// more than any real one does. Not for concurrent use.
type source struct {
	ctx     context.Context // of the one call that made the source
	r       io.ReaderAt
	size    int64
	windows []window
	reads   int
	bytes   int64
}

type window struct {
	off  int64
	data []byte
}

func newSource(ctx context.Context, r io.ReaderAt, size int64) *source {
	return &source{ctx: ctx, r: r, size: max(size, 0)}
}

// read gives exactly n bytes at off; they must not be written. When they have
// to be fetched, the fetch goes on to ahead bytes if the file does. A range outside
// the file is Corrupt.
func (s *source) read(off, n, ahead int64) ([]byte, error) {
	if off < 0 || n < 0 || off > s.size || n > s.size-off {
		return nil, corrupt("%d bytes at %d lie outside the file of %d", n, off, s.size)
	}
	for _, w := range s.windows {
		if off >= w.off && off+n <= w.off+int64(len(w.data)) {
			return w.data[off-w.off:][:n:n], nil
		}
	}
	if err := s.alive(); err != nil {
		return nil, err
	}
	want := min(max(n, ahead), s.size-off)
	s.reads++
	s.bytes += want
	if s.reads > maxReads || s.bytes > maxBytes {
		return nil, corrupt("reading it takes more than %d reads or %d bytes", maxReads, maxBytes)
	}
	data := make([]byte, want)
	got, err := s.r.ReadAt(data, off)
	switch {
	case int64(got) >= n:
		// io.ReaderAt may report EOF with the last bytes; a short read-ahead is no loss.
	case err == nil || err == io.EOF:
		return nil, corrupt("ends at %d, not at %d", off+int64(got), s.size)
	default:
		return nil, fmt.Errorf("read %d bytes at %d: %w", want, off, err)
	}
	if len(s.windows) == maxWindows {
		s.windows = append(s.windows[:0], s.windows[1:]...)
	}
	s.windows = append(s.windows, window{off, data[:got]})
	return data[:n:n], nil
}

// alive gives the context's error, wrapped.
func (s *source) alive() error {
	if err := s.ctx.Err(); err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	return nil
}
