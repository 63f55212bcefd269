package cache

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

func TestStalledBodyTimesOut(t *testing.T) {
	for name, set := range map[string]func(*oneImage) backends.Set{"ranges": (*oneImage).ranged, "plain": (*oneImage).plain} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newImage(4 * chunkSize)
				r.setFault(func(_, n int64) fault { return fault{stall: true, after: n / 2} })
				s := openStore(t, t.TempDir(), set(r))
				b := mustOpen(t, s, r.rec())
				defer b.Close()
				start := time.Now()
				_, err := b.ReadAt(t.Context(), make([]byte, 10), 3*chunkSize)
				wantKind(t, err, backends.Timeout)
				if d := time.Since(start); d < maxStall || d > maxStall+time.Second {
					t.Errorf("gave up after %v", d)
				}
				// It recovers once the registry does.
				r.setFault(nil)
				time.Sleep(downloadPause)
				mustRead(t, b, r.data, 3*chunkSize, 10)
			})
		})
	}
}

func TestFlightsEndSomeTimeAfterTheLastClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newImage(4 * chunkSize)
		gate := make(chan struct{})
		r.setFault(func(int64, int64) fault { return fault{gate: gate} })
		s := openStore(t, t.TempDir(), r.ranged())
		open := func() *Blob {
			b := mustOpen(t, s, r.rec())
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := b.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("read: %v", err)
			}
			return b
		}
		open().Close()
		time.Sleep(graceTime / 2)
		b := open() // joins the flight that goes on
		if _, ranges := r.counts(); ranges != 1 {
			t.Errorf("%d requests", ranges)
		}
		b.Close()
		time.Sleep(graceTime + time.Second)
		synctest.Wait()
		s.mu.Lock()
		if len(s.contents) != 0 {
			t.Error("an image that nobody wants is still being fetched")
		}
		s.mu.Unlock()
		close(gate)
		b = mustOpen(t, s, r.rec())
		defer b.Close()
		p := make([]byte, 10)
		if _, err := b.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, r.data[:10]) {
			t.Errorf("read: %v", err)
		}
	})
}
