package backendtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

func TestCounting(t *testing.T) {
	r := mem.New(mem.Options{NoMove: true, MinListAge: time.Hour})
	rec := r.Put(plain(0), noise(0, 1000))
	s, counts := Counting(r.Set())
	if s.Mover != nil || s.Ranges == nil || s.Pusher == nil || s.Tree == nil || s.Local != nil || s.MinListAge != time.Hour {
		t.Errorf("capabilities are not forwarded: %+v", s)
	}
	if counts.String() != "nothing asked" {
		t.Error(counts)
	}
	seq := s.Images(t.Context(), "lab-0")
	if counts.Calls() != 0 {
		t.Errorf("a listing counts before it is walked: %v", counts)
	}
	for range 2 {
		if err := last(seq); err != nil {
			t.Fatal(err)
		}
	}
	st, err := s.Open(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := drain(st); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pusher.Push(t.Context(), plain(1), newSource(noise(1, 70)), nil); err != nil {
		t.Fatal(err)
	}
	if counts.Calls() != 4 || counts.Calls(Images) != 2 || counts.Calls(Open, Push) != 2 || counts.BytesRead() != 1000 || counts.BytesSent() != 70 {
		t.Error(counts)
	}
	if want := "Images 2, Open 1, Push 1; 1000 bytes read, 70 sent"; counts.String() != want {
		t.Errorf("%v, want %v", counts, want)
	}
	counts.Reset()
	if counts.Calls() != 0 || counts.BytesRead() != 0 {
		t.Error(counts)
	}
}

var errPlanned = errors.New("planned")

// read opens plain(0), of 1000 bytes, and reads it.
func read(ctx context.Context, s backends.Set) ([]byte, error) {
	rec, err := s.Stat(ctx, plain(0))
	if err != nil {
		return nil, err
	}
	st, err := s.Open(ctx, rec)
	if err != nil {
		return nil, err
	}
	return drain(st)
}

func TestFaulty(t *testing.T) {
	data := noise(0, 1000)
	flipped := bytes.Clone(data)
	flipped[999] ^= 0xff
	for name, test := range map[string]struct {
		fault Fault
		want  []byte
		err   error
	}{
		"at once":         {Fault{Method: Open, Err: errPlanned}, nil, errPlanned},
		"after the deed":  {Fault{Method: Open, Err: errPlanned, Late: true}, nil, errPlanned},
		"at byte 1":       {Fault{Method: Open, Err: errPlanned, After: 1}, data[:1], errPlanned},
		"at byte 512":     {Fault{Method: Open, Err: errPlanned, After: 512}, data[:512], errPlanned},
		"at the end":      {Fault{Method: Open, Err: errPlanned, After: 1000}, data, errPlanned},
		"short by all":    {Fault{Method: Open, Short: true}, data[:0], nil},
		"short by one":    {Fault{Method: Open, Short: true, After: 999}, data[:999], nil},
		"last byte wrong": {Fault{Method: Open, Flip: true, After: 999}, flipped, nil},
		"none":            {Fault{Method: Open}, data, nil},
		"of Stat":         {Fault{Method: Stat, Err: errPlanned}, nil, errPlanned},
	} {
		t.Run(name, func(t *testing.T) {
			r := mem.New(mem.Options{})
			r.Put(plain(0), data)
			s := Faulty(t, r.Set(), test.fault)
			got, err := read(t.Context(), s)
			if !errors.Is(err, test.err) || !bytes.Equal(got, test.want) {
				t.Errorf("%s, %v", difference(got, test.want), err)
			}
			if got, err := read(t.Context(), s); err != nil || !bytes.Equal(got, data) {
				t.Errorf("beyond the script: %s, %v", difference(got, data), err)
			}
		})
	}
}

func TestFaultyOrderListingAndPush(t *testing.T) {
	r := mem.New(mem.Options{})
	for n := range 3 {
		r.Put(plain(3*n), noise(0, 10))
	}
	s := Faulty(
		t, r.Set(),
		Fault{Method: Images, Err: errPlanned, After: 2},
		Fault{Method: Push, Err: errPlanned, After: 40},
		Fault{Method: Images}, // lets one pass
		Fault{Method: Push, Err: errPlanned, Late: true},
		Fault{Method: Images, Err: errPlanned},
	)
	walk := func() (n int, err error) {
		for _, err = range s.Images(t.Context(), "lab-0") {
			n++
		}
		return n, err
	}
	if n, err := walk(); n != 3 || !errors.Is(err, errPlanned) {
		t.Errorf("two images and an error: %d pairs, %v", n, err)
	}
	if n, err := walk(); n != 3 || err != nil {
		t.Errorf("let pass: %d, %v", n, err)
	}
	if n, err := walk(); n != 1 || !errors.Is(err, errPlanned) {
		t.Errorf("one error: %d, %v", n, err)
	}
	push := func() error {
		_, err := s.Pusher.Push(t.Context(), plain(1), newSource(noise(1, 70)), nil)
		return err
	}
	if err := push(); !errors.Is(err, errPlanned) {
		t.Error(err)
	}
	if _, ok := r.Bytes(plain(1)); ok {
		t.Error("a push whose source failed is stored")
	}
	if err := push(); !errors.Is(err, errPlanned) {
		t.Error(err)
	}
	if _, ok := r.Bytes(plain(1)); !ok {
		t.Error("a push that fails late is not stored")
	}
}

func TestFaultyBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := mem.New(mem.Options{})
		r.Put(plain(0), noise(0, 1000))
		gate := make(chan struct{})
		s := Faulty(
			t, r.Set(),
			Fault{Method: Open, Block: true, After: 500},
			Fault{Method: Open, Block: true, Gate: gate},
		)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if got, err := read(ctx, s); !errors.Is(err, context.DeadlineExceeded) || len(got) != 500 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		done := make(chan error)
		go func() {
			_, err := read(t.Context(), s)
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("it did not wait: %v", err)
		default:
		}
		close(gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A script that was not played out fails the test.
func TestFaultyNotFired(t *testing.T) {
	for name, fault := range map[string]Fault{
		"never called": {Method: Delete, Err: errPlanned},
		"beyond":       {Method: Open, Err: errPlanned, After: 1001},
		"not blocked":  {Method: Stat, Block: true},
	} {
		failures := record(t, func(r *recorder) {
			m := mem.New(mem.Options{})
			rec := m.Put(plain(0), noise(0, 1000))
			s := Faulty(r, m.Set(), fault)
			if st, err := s.Open(t.Context(), rec); err == nil {
				_, _ = io.Copy(io.Discard, st)
			}
		})
		if len(failures) != 1 || !strings.Contains(failures[0], "did not happen") {
			t.Errorf("%s: %q", name, failures)
		}
	}
}
