package backendtest

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/sregistry/sregistry-fs/backends"
)

// writingBreakages break what changes promise, and concurrent use.
func writingBreakages() []breakage {
	ctx := context.Background()
	return []breakage{
		{"Push", "an image is acknowledged and not stored", func(b *broken) {
			b.push = func(_ context.Context, ref backends.Ref, src backends.Source, _ func(int64)) (backends.Record, error) {
				return backends.Record{Ref: ref, Version: src.Digest().Hex[:16], Size: src.Size(), Full: true}, nil
			}
		}},
		{"Push", "an image is stored without its last byte", func(b *broken) {
			b.push = func(_ context.Context, ref backends.Ref, src backends.Source, _ func(int64)) (backends.Record, error) {
				data := make([]byte, src.Size())
				if _, err := src.ReadAt(data, 0); err != nil {
					return backends.Record{}, err
				}
				return b.Put(ref, data[:len(data)-1]), nil
			}
		}},
		{"Push", "every tag is latest", func(b *broken) {
			b.push = func(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
				ref.Tag = "latest"
				return b.Registry.Push(ctx, ref, src, report)
			}
		}},
		{"Push", "an existing image is kept", func(b *broken) {
			b.push = func(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
				if rec, err := b.Registry.Stat(ctx, ref); err == nil {
					return rec, nil
				}
				return b.Registry.Push(ctx, ref, src, report)
			}
		}},
		{"Push", "more is reported than was sent", func(b *broken) {
			b.push = func(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
				if report != nil {
					report(src.Size() + 1)
				}
				return b.Registry.Push(ctx, ref, src, report)
			}
		}},
		{"Push", "a name that can be no path is taken", func(b *broken) {
			b.push = func(_ context.Context, ref backends.Ref, src backends.Source, _ func(int64)) (backends.Record, error) {
				data := make([]byte, src.Size())
				_, err := src.ReadAt(data, 0)
				return b.Put(ref, data), err
			}
		}},
		{"PushBroken", "what could be read is stored", func(b *broken) {
			b.push = func(_ context.Context, ref backends.Ref, src backends.Source, _ func(int64)) (backends.Record, error) {
				data, err := io.ReadAll(io.NewSectionReader(src, 0, src.Size()))
				return b.Put(ref, data), err
			}
		}},
		{"PushBroken", "a source that fails goes unnoticed", func(b *broken) {
			b.push = func(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
				rec, err := b.Registry.Push(ctx, ref, src, report)
				if errors.Is(err, backends.Corrupt) {
					err = nil
				}
				return rec, err
			}
		}},
		{"PushCancel", "a push does not look at its context", func(b *broken) {
			b.push = func(_ context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
				return b.Registry.Push(ctx, ref, src, report)
			}
		}},
		{"PushCancel", "a push that is cancelled stores what it has", func(b *broken) {
			b.push = func(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
				rec, err := b.Registry.Push(ctx, ref, src, report)
				if err != nil && src.Size() > 1000 {
					data := make([]byte, 1000)
					_, _ = src.ReadAt(data, 0)
					b.Put(ref, data)
				}
				return rec, err
			}
		}},
		{"Frozen", "a frozen image is pushed over", func(b *broken) {
			b.push = func(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
				b.Freeze(ref, false)
				return b.Registry.Push(ctx, ref, src, report)
			}
		}},
		{"Frozen", "a frozen image is deleted", func(b *broken) {
			b.del = func(ctx context.Context, rec backends.Record) error {
				b.Freeze(rec.Ref, false)
				return b.Registry.Delete(ctx, rec)
			}
		}},
		{"Frozen", "a frozen image does not say so", func(b *broken) {
			b.changeRecord(func(rec *backends.Record) { rec.Frozen = false })
		}},
		{"Delete", "a delete reports success and does nothing", func(b *broken) {
			b.del = func(ctx context.Context, _ backends.Record) error { return ctx.Err() }
		}},
		{"Delete", "every tag of the same bytes is deleted", func(b *broken) {
			b.del = func(ctx context.Context, rec backends.Record) error {
				for r := range b.Registry.Tree(ctx) {
					if r.Digest == rec.Digest {
						b.Remove(r.Ref)
					}
				}
				return nil
			}
		}},
		{"Delete", "a delete does not look at its context", func(b *broken) {
			b.del = func(_ context.Context, rec backends.Record) error { return b.Registry.Delete(ctx, rec) }
		}},
		{"Move", "a move leaves the old name", func(b *broken) {
			b.move = func(_ context.Context, rec backends.Record, to backends.Ref) (backends.Record, error) {
				data, _ := b.Bytes(rec.Ref)
				return b.Put(to, data), nil
			}
		}},
		{"Move", "a move does not replace", func(b *broken) {
			b.move = func(ctx context.Context, rec backends.Record, to backends.Ref) (backends.Record, error) {
				if _, ok := b.Bytes(to); ok {
					return backends.Record{}, &backends.Error{Op: "move", Ref: to, Kind: backends.Exists}
				}
				return b.Registry.Move(ctx, rec, to)
			}
		}},
		{"Concurrent", "one caller at a time", func(b *broken) {
			var open atomic.Int32
			b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
				defer open.Add(-1)
				if open.Add(1) > 1 {
					return nil, &backends.Error{Op: "open", Ref: rec.Ref, Kind: backends.Unavailable}
				}
				for range 10 {
					runtime.Gosched()
				}
				return b.Registry.Open(ctx, rec)
			}
		}},
	}
}
