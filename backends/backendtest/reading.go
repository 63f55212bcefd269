package backendtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing/iotest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// testRecords: a record is exact where it tells something, and does not change
// while the image does not.
func testRecords(s *session) {
	data := noise(0, 5000)
	s.seed(plain(0), data)
	s.seed(plain(3), noise(3, 5000)) // same collection, same length
	rec := s.holds(plain(0), data)
	again := s.holds(plain(0), data)
	if !backends.SameVersion(rec, again) {
		s.Errorf("the version went from %q to %q, the image stayed", rec.Version, again.Version)
	}
	if !rec.Digest.IsZero() && rec.Digest.NewHash() == nil {
		s.Errorf("the record states the digest %q, which nobody can compute", rec.Digest)
	}
	if rec.Created.After(time.Now().Add(24 * time.Hour)) {
		s.Errorf("the image is from the future: %v", rec.Created)
	}
	if rec.Size == backends.UnknownSize {
		s.Log("records of this registry tell no size")
	}
	if rec.Digest.IsZero() {
		s.Log("records of this registry tell no digest")
	}
	upper := backends.Ref{Collection: "LAB-0", Image: "TOOL-0", Tag: "1.0"}
	if rec, err := s.set.Stat(s.ctx, upper); err == nil {
		s.checkRecord(rec, plain(0)) // the registry's own spelling
	} else {
		s.wantKind("Stat in capitals", err, backends.NotFound, backends.Invalid)
	}
}

// edges are lengths at which off-by-one errors show.
var edges = [...]int{0, 1, 2, 511, 512, 4095, 4096, 4097, 65536, 1<<20 + 1}

// testWhole: a stream gives exactly the image, however it is read.
func testWhole(s *session) {
	for i, n := range edges {
		ref, data := plain(i), noise(uint64(i), n)
		if err := s.trySeed(ref, data); err != nil {
			if n > 0 {
				s.Fatalf("seeding %v: %v", ref, err)
			}
			s.Logf("the registry takes no empty image: %v", err)
			continue
		}
		rec := s.holds(ref, data)
		st, err := s.set.Open(s.ctx, rec)
		if err != nil {
			s.Fatalf("Open %v: %v", ref, err)
		}
		if st.Size != backends.UnknownSize && st.Size != int64(n) {
			s.Errorf("the stream of %d bytes says %d", n, st.Size)
		}
		s.checkDigest(ref, st.Digest, data)
		var r io.Reader = iotest.HalfReader(st)
		if n < 5000 {
			r = iotest.OneByteReader(st)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) {
			s.Errorf("in small reads: %s, %v", difference(got, data), err)
		}
		for range 2 {
			if n, err := st.Read(make([]byte, 10)); n != 0 || err != io.EOF {
				s.Errorf("reading on after the end gave %d bytes, %v", n, err)
			}
		}
		if err := st.Close(); err != nil {
			s.Errorf("closing a stream at its end: %v", err)
		}
		if n < 2 {
			continue
		}
		if st, err = s.set.Open(s.ctx, rec); err != nil {
			s.Fatalf("Open %v: %v", ref, err)
		}
		if _, err := io.ReadFull(st, make([]byte, n/2)); err != nil {
			s.Errorf("reading the first half: %v", err)
		}
		_ = st.Close() // half-way; must not hurt the next one
		s.holds(ref, data)
	}
}

// testRanges: a range gives exactly its bytes.
func testRanges(s *session) {
	const size = 300_000
	ref, data := plain(0), noise(0, size)
	s.seed(ref, data)
	rec := s.stat(ref)
	whole, err := s.set.Open(s.ctx, rec)
	if err != nil {
		s.Fatalf("Open: %v", err)
	}
	_ = whole.Close()
	if _, err := s.readRange(rec, 0, 1); errors.Is(err, backends.Unsupported) {
		s.Logf("this registry's images have no ranges: %v", err)
		return
	}
	validator := ""
	for _, r := range [][2]int64{
		{0, 1},
		{0, 4096},
		{0, size - 1},
		{0, size},
		{1, 1},
		{1, size - 1},
		{4095, 2},
		{4096, 4096},
		{65536, 131072},
		{size / 2, 1},
		{size - 2, 1},
		{size - 1, 1},
		{size - 4097, 4097},
	} {
		off, n := r[0], r[1]
		st, err := s.set.Ranges.OpenRange(s.ctx, rec, off, n)
		if err != nil {
			s.Errorf("OpenRange %d+%d: %v", off, n, err)
			continue
		}
		if st.Size != backends.UnknownSize && st.Size != size {
			s.Errorf("OpenRange %d+%d: the stream says the image has %d bytes, want %d", off, n, st.Size, size)
		}
		s.checkDigest(ref, st.Digest, data)
		if validator == "" {
			validator = st.Validator
		}
		if st.Validator != validator {
			s.Errorf("OpenRange %d+%d: validator %q, before %q", off, n, st.Validator, validator)
		}
		if st.Validator != "" && whole.Validator != "" && st.Validator != whole.Validator {
			s.Errorf("OpenRange %d+%d: validator %q, Open had %q", off, n, st.Validator, whole.Validator)
		}
		got, err := drain(st)
		if err != nil || !bytes.Equal(got, data[off:off+n]) {
			s.Errorf("OpenRange %d+%d: %s, %v", off, n, difference(got, data[off:off+n]), err)
		}
	}
	st, err := s.set.Ranges.OpenRange(s.ctx, rec, 10, 200_000)
	if err != nil {
		s.Fatalf("OpenRange: %v", err)
	}
	_ = st.Close() // unread; must not hurt the next one
	if got, err := s.readRange(rec, 10, 20); err != nil || !bytes.Equal(got, data[10:30]) {
		s.Errorf("OpenRange after one that was left unread: %s, %v", difference(got, data[10:30]), err)
	}
}

// testLocal: the file is the image, and stays it.
func testLocal(s *session) {
	ref, data := plain(0), noise(0, 10_000)
	s.seed(ref, data)
	rec := s.stat(ref)
	f, err := s.set.Local.OpenLocal(s.ctx, rec)
	if errors.Is(err, backends.Unsupported) {
		s.Logf("this image has no local file: %v", err)
		return
	}
	if err != nil {
		s.Fatalf("OpenLocal: %v", err)
	}
	defer func() { _ = f.Close() }()
	read := func() {
		s.Helper()
		got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
		if err != nil || !bytes.Equal(got, data) {
			s.Errorf("the file: %s, %v", difference(got, data), err)
		}
	}
	read()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		s.Error("the file can be written")
	}
	s.seed(ref, noise(1, 10_000))
	read() // an open file keeps its content
	g, err := s.set.Local.OpenLocal(s.ctx, rec)
	if err == nil {
		_ = g.Close()
	}
	s.wantKind("OpenLocal of a replaced image", err, backends.Stale)
}

// testStale: nobody gets other bytes than those of the record's version.
func testStale(s *session) {
	const size = 3 << 20
	ref := plain(0)
	old, same, longer := noise(0, size), noise(1, size), noise(2, size+100)
	s.seed(ref, old)
	rec := s.holds(ref, old)
	st, err := s.set.Open(s.ctx, rec)
	if err != nil {
		s.Fatalf("Open: %v", err)
	}
	begun := make([]byte, 1000)
	if _, err := io.ReadFull(st, begun); err != nil {
		s.Fatalf("reading: %v", err)
	}
	for _, data := range [][]byte{same, longer} {
		s.seed(ref, data)
		now := s.holds(ref, data)
		if now.Version == rec.Version {
			s.Errorf("the image was replaced, its version is still %q", rec.Version)
		}
		_, err := s.read(rec)
		s.wantKind("Open of a replaced image", err, backends.Stale)
		if s.set.Ranges != nil {
			_, err := s.readRange(rec, 100, 100)
			s.wantKind("OpenRange of a replaced image", err, backends.Stale, backends.Unsupported)
			old, err := s.set.Open(s.ctx, now)
			if err != nil {
				s.Fatalf("Open: %v", err)
			}
			if old.Validator != "" && old.Validator == st.Validator {
				s.Errorf("the image was replaced, its validator is still %q", st.Validator)
			}
			_ = old.Close()
		}
	}
	rest, err := drain(st)
	if got := append(begun, rest...); !bytes.HasPrefix(old, got) || err == nil && len(got) != len(old) {
		s.Errorf("a stream under which the image was replaced: %s, %v", difference(got, old), err)
	}
}

// testReopen: a record is good in a later process too.
func testReopen(s *session) {
	ref, data := plain(0), noise(0, 3000)
	s.seed(ref, data)
	rec := s.holds(ref, data)
	later := s.watch(backends.Probe(s.store.Reopen(s)))
	now, err := later.Stat(s.ctx, ref)
	if err != nil || !backends.SameVersion(rec, now) {
		s.Errorf("in a later process: %+v, %v; before: %+v", now, err, rec)
	}
	st, err := later.Open(s.ctx, rec)
	if err != nil {
		s.Fatalf("Open in a later process: %v", err)
	}
	if got, err := drain(st); err != nil || !bytes.Equal(got, data) {
		s.Errorf("Open in a later process: %s, %v", difference(got, data), err)
	}
	if err := later.Close(); err != nil {
		s.Errorf("Close: %v", err)
	}
}

// testCancel: a call ends with its context, and says why.
func testCancel(s *session) {
	const size = 8 << 20 // more than what lies between a server and its client
	ref, data := plain(0), noise(0, size)
	s.seed(ref, data)
	for n := 1; n < 5; n++ {
		s.seed(plain(3*n), noise(uint64(n), 10)) // lab-0 as well
	}
	rec := s.stat(ref)

	over, cancel := context.WithCancel(s.ctx)
	cancel()
	cancelled := func(what string, err error) {
		s.Helper()
		if !errors.Is(err, context.Canceled) {
			s.Errorf("%s after the context was cancelled gave %v", what, err)
		}
	}
	_, err := s.set.Stat(over, ref)
	cancelled("Stat", err)
	cancelled("Collections", last(s.set.Collections(over)))
	cancelled("Images", last(s.set.Images(over, "lab-0")))
	if s.set.Tree != nil {
		cancelled("Tree", last(s.set.Tree.Tree(over)))
	}
	st, err := s.set.Open(over, rec)
	if err == nil {
		_, err = drain(st)
	}
	cancelled("Open", err)
	if s.set.Ranges != nil {
		st, err := s.set.Ranges.OpenRange(over, rec, 0, 100)
		if err == nil {
			_, err = drain(st)
		}
		if !errors.Is(err, backends.Unsupported) {
			cancelled("OpenRange", err)
		}
	}
	if s.set.Local != nil {
		f, err := s.set.Local.OpenLocal(over, rec)
		if err == nil {
			_ = f.Close()
		}
		cancelled("OpenLocal", err)
	}

	s.cancelHalfway("Open", func(ctx context.Context) (*backends.Stream, error) { return s.set.Open(ctx, rec) })
	if s.set.Ranges != nil {
		s.cancelHalfway("OpenRange", func(ctx context.Context) (*backends.Stream, error) {
			return s.set.Ranges.OpenRange(ctx, rec, 1, size-2)
		})
	}

	// A listing that is cancelled is whole, or it says that it is not.
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	n := 0
	for _, err = range s.set.Images(ctx, "lab-0") {
		if err == nil {
			n++
		}
		cancel()
	}
	if err == nil && n != 5 {
		s.Errorf("a listing that was cancelled gave %d images of 5 and no error", n)
	}
	if err != nil {
		cancelled("Images", err)
	}
	s.holds(ref, data) // and nothing else is disturbed
}

// last walks a listing and gives its last error.
func last[T any](seq func(yield func(T, error) bool)) error {
	var last error
	for _, err := range seq {
		last = err
	}
	return last
}

// cancelHalfway cancels a stream that is being read.
func (s *session) cancelHalfway(what string, open func(context.Context) (*backends.Stream, error)) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	st, err := open(ctx)
	if err != nil {
		if !errors.Is(err, backends.Unsupported) {
			s.Errorf("%s: %v", what, err)
		}
		return
	}
	if _, err := io.ReadFull(st, make([]byte, 1024)); err != nil {
		s.Errorf("%s: %v", what, err)
	}
	cancel()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, st)
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			s.Errorf("%s: a stream whose context was cancelled half-way ended with %v", what, err)
		}
	case <-time.After(soon):
		s.Errorf("%s: a stream goes on %v after its context was cancelled", what, soon)
	}
	_ = st.Close()
}
