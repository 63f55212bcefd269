package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

// readingBreakages break what streams and files promise.
func readingBreakages() []breakage {
	return []breakage{
		{"Whole", "the last byte is missing", func(b *broken) {
			b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
				st, err := b.Registry.Open(ctx, rec)
				return instead(st, err, func(r io.Reader) io.Reader { return io.LimitReader(r, max(0, rec.Size-1)) })
			}
		}},
		{"Whole", "a byte follows the end", func(b *broken) {
			b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
				st, err := b.Registry.Open(ctx, rec)
				return instead(st, err, func(r io.Reader) io.Reader { return io.MultiReader(r, strings.NewReader("x")) })
			}
		}},
		{"Whole", "a byte is wrong", func(b *broken) {
			b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
				st, err := b.Registry.Open(ctx, rec)
				return instead(st, err, func(r io.Reader) io.Reader {
					data, _ := io.ReadAll(r)
					data = bytes.Clone(data)
					if len(data) > 4096 {
						data[4096] ^= 1
					}
					return bytes.NewReader(data)
				})
			}
		}},
		{"Whole", "the stream's size is that of the blocks", func(b *broken) {
			b.changeStream(func(st *backends.Stream) { st.Size = (st.Size + 511) / 512 * 512 })
		}},
		{"Whole", "the stream's digest is another image's", func(b *broken) {
			b.changeStream(func(st *backends.Stream) { st.Digest = newSource([]byte("x")).Digest() })
		}},
		{"Ranges", "a range starts one byte late", func(b *broken) {
			b.openRange = func(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
				return b.Registry.OpenRange(ctx, rec, min(off+1, rec.Size-n), n)
			}
		}},
		{"Ranges", "a range ends one byte late", func(b *broken) {
			b.openRange = func(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
				return b.Registry.OpenRange(ctx, rec, off, min(n+1, rec.Size-off))
			}
		}},
		{"Ranges", "a range is the whole image", func(b *broken) {
			b.openRange = func(ctx context.Context, rec backends.Record, _, _ int64) (*backends.Stream, error) {
				return b.Registry.Open(ctx, rec)
			}
		}},
		{"Ranges", "a range's size is its own", func(b *broken) {
			b.openRange = func(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
				st, err := b.Registry.OpenRange(ctx, rec, off, n)
				if err == nil {
					st.Size = n
				}
				return st, err
			}
		}},
		{"Ranges", "each range has a validator of its own", func(b *broken) {
			b.openRange = func(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
				st, err := b.Registry.OpenRange(ctx, rec, off, n)
				if err == nil {
					st.Validator = fmt.Sprint(off)
				}
				return st, err
			}
		}},
		{"Local", "the file can be written", func(b *broken) {
			b.local = func(ctx context.Context, rec backends.Record) (*os.File, error) {
				file, err := b.file(ctx, rec)
				if err != nil {
					return nil, err
				}
				return os.OpenFile(file, os.O_RDWR, 0)
			}
		}},
		{"Local", "a replaced file is not noticed", func(b *broken) {
			b.local = func(ctx context.Context, rec backends.Record) (*os.File, error) {
				file, err := b.file(ctx, b.current(rec))
				if err != nil {
					return nil, err
				}
				return os.Open(file)
			}
		}},
		{"Stale", "Open gives what there is now", func(b *broken) {
			b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
				return b.Registry.Open(ctx, b.current(rec))
			}
		}},
		{"Stale", "OpenRange gives what there is now", func(b *broken) {
			b.openRange = func(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
				return b.Registry.OpenRange(ctx, b.current(rec), off, n)
			}
		}},
		{"Stale", "a stream goes on with the new bytes", func(b *broken) {
			b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
				st, err := b.Registry.Open(ctx, rec)
				return instead(st, err, func(io.Reader) io.Reader { return &nowReader{b: b, ref: rec.Ref} })
			}
		}},
		{"Stale", "other bytes have the same version", func(b *broken) {
			b.changeRecord(func(rec *backends.Record) { rec.Version = fmt.Sprint(rec.Size) })
		}},
		{"Stale", "other bytes have the same validator", func(b *broken) {
			b.changeStream(func(st *backends.Stream) { st.Validator = "etag" })
		}},
	}
}
