package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/sregistry/sregistry-fs/backends"
)

// push stores an image through the backend and checks all that must then hold.
func (s *session) push(ref backends.Ref, data []byte) backends.Record {
	s.Helper()
	var (
		mu   sync.Mutex
		most int64
	)
	rec, err := s.set.Pusher.Push(s.ctx, ref, newSource(data), func(sent int64) {
		mu.Lock()
		defer mu.Unlock()
		if sent < 0 || sent > int64(len(data)) {
			s.Errorf("Push %v: %d bytes sent are reported, of %d", ref, sent, len(data))
		}
		most = max(most, sent)
	})
	if err != nil {
		s.Fatalf("Push %v: %v", ref, err)
	}
	mu.Lock()
	if most != 0 && most != int64(len(data)) { // not reporting at all is fine
		s.Errorf("Push %v: the reports end at %d of %d bytes", ref, most, len(data))
	}
	mu.Unlock()
	s.checkRecord(rec, ref)
	s.checkBytes(rec, data)
	if !rec.Full {
		s.Errorf("Push %v: the record is not full", ref)
	}
	now := s.holds(ref, data)
	if !backends.SameVersion(rec, now) {
		s.Errorf("Push %v gave version %q, the registry has %q", ref, rec.Version, now.Version)
	}
	return rec
}

// testPush: what was pushed is there, under its name and with its bytes, when Push
// returns.
func testPush(s *session) {
	for i, n := range []int{1, 4096, 1<<20 + 7} {
		s.push(plain(i), noise(uint64(i), n))
	}
	if !s.collections()["lab-0"] {
		s.Error("the collection of a pushed image is not listed")
	}
	nested := backends.Ref{Collection: "lab-9/group", Image: "tool", Tag: "1.0"}
	if s.fits(nested) {
		s.push(nested, noise(9, 100))
	}

	ref, data := plain(0), noise(0, 5000)
	first := s.push(ref, data)
	s.push(ref, data) // the same again
	second := s.push(ref, noise(50, 5000))
	if first.Version == second.Version {
		s.Errorf("other bytes of the same length were pushed, the version is still %q", first.Version)
	}
	_, err := s.read(first)
	s.wantKind("Open of an image that was pushed over", err, backends.Stale)
	s.push(ref, noise(51, 100)) // shorter than before

	sibling := ref
	sibling.Tag = "2.0"
	s.push(sibling, noise(52, 300))
	s.holds(ref, noise(51, 100))

	for i, ref := range oddNames() {
		if i%4 == 0 && s.fits(ref) {
			s.push(ref, noise(uint64(100+i), 64))
		}
	}
	for _, ref := range []backends.Ref{
		{Collection: "lab-0", Image: "../tool", Tag: "1"},
		{Collection: "../lab-0", Image: "tool", Tag: "1"},
		{Collection: "lab-0", Image: "tool", Tag: "a/b"},
		{Collection: "lab-0"},
		{},
	} {
		_, err := s.set.Pusher.Push(s.ctx, ref, newSource(noise(0, 10)), nil)
		s.wantKind(fmt.Sprintf("Push to %q", ref), err, backends.Invalid)
	}
}

// errSource is what a source fails with that cannot be read.
var errSource = errors.New("the source cannot be read")

// brokenSource fails, or ends, at an offset.
type brokenSource struct {
	source
	at  int64
	err error // io.EOF: it ends early
}

func (b brokenSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.source.ReadAt(p, off)
	if off+int64(n) <= b.at {
		return n, err
	}
	return int(max(0, b.at-off)), b.err
}

// testPushBroken: a push that fails leaves the old image or none.
func testPushBroken(s *session) {
	old, data := noise(0, 5000), noise(1, 200_000)
	ref, fresh := plain(0), plain(3)
	s.seed(ref, old)
	for _, cause := range []error{errSource, io.EOF} {
		for _, at := range []int64{0, 1, 100_000, 199_999} {
			src := brokenSource{source: newSource(data), at: at, err: cause}
			for _, to := range []backends.Ref{ref, fresh} {
				if _, err := s.set.Pusher.Push(s.ctx, to, src, nil); err == nil {
					s.Errorf("Push of a source that breaks at %d (%v) succeeded", at, cause)
				}
			}
		}
	}
	s.holds(ref, old)
	s.gone(fresh)
	s.push(ref, data) // and it can still be pushed
}

// cancelSource cancels when it is read at or after an offset.
type cancelSource struct {
	source
	at     int64
	cancel context.CancelFunc
}

func (c cancelSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.source.ReadAt(p, off)
	if off+int64(n) > c.at {
		c.cancel()
	}
	return n, err
}

// testPushCancel: a push that is cancelled leaves the old image, none, or, if it
// was too late, the new one; never anything else.
func testPushCancel(s *session) {
	ref := plain(0)
	have := noise(0, 5000)
	s.seed(ref, have)
	over, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.set.Pusher.Push(over, ref, newSource(noise(1, 100)), nil); !errors.Is(err, context.Canceled) {
		s.Errorf("Push after the context was cancelled gave %v", err)
	}
	s.holds(ref, have)
	const size = 6 << 20
	for i, at := range []int64{0, size / 2, size - 1} {
		data := noise(uint64(10+i), size)
		ctx, cancel := context.WithCancel(s.ctx)
		_, err := s.set.Pusher.Push(ctx, ref, cancelSource{source: newSource(data), at: at, cancel: cancel}, nil)
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			s.Errorf("Push that was cancelled at %d gave %v", at, err)
		}
		if err == nil && at < size/2 {
			s.Errorf("Push that was cancelled at %d of %d bytes went on to its end", at, size)
		}
		got, rerr := s.read(s.stat(ref))
		if rerr != nil {
			s.Fatalf("Open after a cancelled push: %v", rerr)
		}
		switch {
		case bytes.Equal(got, data):
			have = data
		case err == nil:
			s.Errorf("Push that was cancelled at %d succeeded, the registry has: %s", at, difference(got, data))
		case !bytes.Equal(got, have):
			s.Errorf("after a push that was cancelled at %d: %s", at, difference(got, have))
		}
		s.holds(ref, have)
	}
}

// testFrozen: a frozen image says so and does not change.
func testFrozen(s *session) {
	ref, other, data := plain(0), plain(3), noise(0, 1000)
	s.seed(ref, data)
	s.seed(other, noise(3, 1000))
	if s.stat(ref).Frozen {
		s.Error("the record of an image says frozen before it is")
	}
	if err := s.store.Freeze(ref); err != nil {
		s.Fatalf("Freeze: %v", err)
	}
	rec := s.holds(ref, data)
	if !rec.Frozen {
		s.Error("the record of a frozen image does not say so")
	}
	if s.set.Pusher != nil {
		_, err := s.set.Pusher.Push(s.ctx, ref, newSource(noise(1, 1000)), nil)
		s.wantKind("Push over a frozen image", err, backends.Frozen)
	}
	if s.set.Deleter != nil {
		s.wantKind("Delete of a frozen image", s.set.Deleter.Delete(s.ctx, rec), backends.Frozen)
	}
	if s.set.Mover != nil {
		_, err := s.set.Mover.Move(s.ctx, rec, plain(6))
		s.wantKind("Move of a frozen image", err, backends.Frozen)
		_, err = s.set.Mover.Move(s.ctx, s.stat(other), ref)
		s.wantKind("Move over a frozen image", err, backends.Frozen)
		s.gone(plain(6))
	}
	s.holds(ref, data)
	s.holds(other, noise(3, 1000))
}

// testDelete: nil means gone, and nothing else is gone with it.
func testDelete(s *session) {
	ref, sibling, data := plain(0), plain(0), noise(0, 1000)
	sibling.Tag = "2.0"
	s.seed(ref, data)
	s.seed(sibling, data) // the same bytes under another tag
	s.seed(plain(1), data)
	rec := s.stat(ref)
	over, cancel := context.WithCancel(s.ctx)
	cancel()
	if err := s.set.Deleter.Delete(over, rec); !errors.Is(err, context.Canceled) {
		s.Errorf("Delete after the context was cancelled gave %v", err)
	}
	s.holds(ref, data)
	if s.h.DeleteBroken != "" {
		s.Logf("deletes have no effect: %s", s.h.DeleteBroken)
		if err := s.set.Deleter.Delete(s.ctx, rec); err == nil {
			s.Error("Delete reports success where deletes have no effect")
		}
		s.holds(ref, data)
		return
	}
	if err := s.set.Deleter.Delete(s.ctx, rec); err != nil {
		s.Fatalf("Delete: %v", err)
	}
	s.gone(ref)
	_, err := s.read(rec)
	s.wantKind("Open of a deleted image", err, backends.NotFound, backends.Stale)
	s.holds(sibling, data)
	s.holds(plain(1), data)
	if err := s.set.Deleter.Delete(s.ctx, rec); err != nil {
		s.wantKind("Delete of what is deleted", err, backends.NotFound)
	}

	// A tag that moved on: refused, or it is gone now; nothing in between.
	old := s.stat(sibling)
	s.seed(sibling, noise(1, 1000))
	if err := s.set.Deleter.Delete(s.ctx, old); err != nil {
		s.wantKind("Delete of a replaced image", err, backends.Stale)
		s.holds(sibling, noise(1, 1000))
	} else {
		s.Log("this registry deletes whatever version it has")
		s.gone(sibling)
	}
	s.seed(ref, noise(2, 500)) // the name can be used again
	s.holds(ref, noise(2, 500))
}

// testMove: the image is there under its new name only, whole.
func testMove(s *session) {
	data := noise(0, 1000)
	s.seed(plain(0), data)
	s.seed(plain(1), noise(1, 2000))
	targets := []backends.Ref{
		{Collection: "lab-0", Image: "renamed", Tag: "1.0"},
		{Collection: "lab-0", Image: "renamed", Tag: "2.0"},
		{Collection: "lab-5", Image: "renamed", Tag: "2.0"}, // a collection that is new
		plain(1), // over an existing image
	}
	from := plain(0)
	for _, to := range targets {
		rec, err := s.set.Mover.Move(s.ctx, s.stat(from), to)
		if err != nil {
			s.Fatalf("Move %v to %v: %v", from, to, err)
		}
		s.checkRecord(rec, to)
		s.checkBytes(rec, data)
		if now := s.holds(to, data); now.Version != rec.Version {
			s.Errorf("Move gave version %q, the registry has %q", rec.Version, now.Version)
		}
		s.gone(from)
		from = to
	}
	rec := s.stat(from)
	absent := rec
	absent.Ref = plain(0)
	_, err := s.set.Mover.Move(s.ctx, absent, plain(4))
	s.wantKind("Move of an absent image", err, backends.NotFound, backends.Stale)
	s.gone(plain(4))
	_, err = s.set.Mover.Move(s.ctx, rec, backends.Ref{Collection: "lab-0", Image: "../x", Tag: "1"})
	s.wantKind("Move to a name that is none", err, backends.Invalid)
	over, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.set.Mover.Move(over, rec, plain(0)); !errors.Is(err, context.Canceled) {
		s.Errorf("Move after the context was cancelled gave %v", err)
	}
	s.holds(from, data)

	s.seed(from, noise(7, 1000))
	if _, err := s.set.Mover.Move(s.ctx, rec, plain(0)); err == nil {
		s.Log("this registry moves whatever version it has")
	} else {
		s.wantKind("Move of a replaced image", err, backends.Stale)
		s.holds(from, noise(7, 1000))
	}
}

// testConcurrent: one backend serves many callers at once; under the race
// detector, too.
func testConcurrent(s *session) {
	const images, callers, rounds = 4, 8, 5
	contents := [images][]byte{}
	for n := range images {
		contents[n] = noise(uint64(n), 50_000+n)
		s.seed(plain(n), contents[n])
	}
	shared := backends.Ref{Collection: "lab-0", Image: "shared", Tag: "1.0"}
	var (
		wg    sync.WaitGroup
		fails atomic.Int32
	)
	fail := func(format string, args ...any) {
		if fails.Add(1) < 10 { // enough to see what is wrong
			s.Errorf(format, args...)
		}
	}
	for c := range callers {
		wg.Go(func() {
			for round := range rounds {
				n := (c + round) % images
				rec, err := s.set.Stat(s.ctx, plain(n))
				if err != nil {
					fail("Stat: %v", err)
					continue
				}
				if got, err := s.read(rec); err != nil || !bytes.Equal(got, contents[n]) {
					fail("Open: %s, %v", difference(got, contents[n]), err)
				}
				if s.set.Ranges != nil {
					got, err := s.readRange(rec, int64(1000*c), 5000)
					if want := contents[n][1000*c:][:5000]; !errors.Is(err, backends.Unsupported) && (err != nil || !bytes.Equal(got, want)) {
						fail("OpenRange: %s, %v", difference(got, want), err)
					}
				}
				if err := last(s.set.Images(s.ctx, plain(n).Collection)); err != nil {
					fail("Images: %v", err)
				}
				if s.set.Pusher == nil {
					continue
				}
				own := backends.Ref{Collection: "lab-1", Image: fmt.Sprintf("own-%d", c), Tag: "1.0"}
				data := noise(uint64(100*c+round), 20_000)
				rec, err = s.set.Pusher.Push(s.ctx, own, newSource(data), nil)
				if err != nil {
					fail("Push: %v", err)
					continue
				}
				if got, err := s.read(rec); err != nil || !bytes.Equal(got, data) {
					fail("Open of what was just pushed: %s, %v", difference(got, data), err)
				}
				if _, err := s.set.Pusher.Push(s.ctx, shared, newSource(noise(uint64(c), 30_000)), nil); err != nil &&
					!errors.Is(err, backends.Stale) && !errors.Is(err, backends.Exists) {
					fail("Push by many to one name: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if s.set.Pusher == nil {
		return
	}
	got, err := s.read(s.stat(shared))
	whole := false
	for c := range callers {
		whole = whole || bytes.Equal(got, noise(uint64(c), 30_000))
	}
	if err != nil || !whole {
		s.Errorf("after pushes by many to one name it holds nobody's bytes: %d, %v", len(got), err)
	}
}
