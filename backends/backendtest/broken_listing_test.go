package backendtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/sregistry/sregistry-fs/backends"
)

// listingBreakages break what listings and records promise, and contexts.
func listingBreakages() []breakage {
	ctx := context.Background()
	return []breakage{
		{"Listing", "an image is left out", func(b *broken) {
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					first := true
					for rec, err := range seq {
						if !first && !yield(rec, err) {
							return
						}
						first = false
					}
				}
			})
		}},
		{"Listing", "an image is listed twice", func(b *broken) {
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					for rec, err := range seq {
						for range 2 {
							if !yield(rec, err) {
								return
							}
						}
					}
				}
			})
		}},
		{"Listing", "a collection is left out", func(b *broken) {
			b.collections = func(context.Context) iter.Seq2[string, error] { return func(func(string, error) bool) {} }
		}},
		{"Listing", "listings give a size that is estimated", func(b *broken) {
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					for rec, err := range seq {
						rec.Size = (rec.Size + 511) / 512 * 512
						if !yield(rec, err) {
							return
						}
					}
				}
			})
		}},
		{"Paging", "a listing goes on after its consumer has stopped", func(b *broken) {
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					for rec, err := range seq {
						_ = yield(rec, err)
					}
				}
			})
		}},
		{"Paging", "a listing can be walked once only", func(b *broken) {
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				next, stop := iter.Pull2(seq)
				return func(yield func(backends.Record, error) bool) {
					defer stop()
					for rec, err, ok := next(); ok && yield(rec, err); rec, err, ok = next() {
					}
				}
			})
		}},
		{"Tree", "the whole lacks an image", func(b *broken) {
			b.tree = func(ctx context.Context) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					for rec, err := range b.Registry.Tree(ctx) {
						if rec.Ref != plain(2) && !yield(rec, err) {
							return
						}
					}
				}
			}
		}},
		{"Absent", "an absent image has a record", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				rec, err := b.Registry.Stat(ctx, ref)
				if errors.Is(err, backends.NotFound) {
					return backends.Record{Ref: ref, Version: "1", Size: backends.UnknownSize, Full: true}, nil
				}
				return rec, err
			}
		}},
		{"Absent", "an absent collection is an empty one", func(b *broken) {
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					for rec, err := range seq {
						if errors.Is(err, backends.NotFound) || !yield(rec, err) {
							return
						}
					}
				}
			})
		}},
		{"Absent", "an error has no kind", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				rec, err := b.Registry.Stat(ctx, ref)
				if err != nil {
					err = errors.New("not found")
				}
				return rec, err
			}
		}},
		{"Absent", "an error shows a secret", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				rec, err := b.Registry.Stat(ctx, ref)
				if err != nil {
					err = fmt.Errorf("GET https://reg/?token=%s: %w", canary, err)
				}
				return rec, err
			}
		}},
		{"Absent", "a hint shows a secret", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				rec, err := b.Registry.Stat(ctx, ref)
				var e *backends.Error
				if errors.As(err, &e) {
					e.Hint = "is " + canary + " right?"
				}
				return rec, err
			}
		}},
		{"Names", "names are unescaped", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				ref.Tag = strings.ReplaceAll(ref.Tag, "%41", "A")
				return b.Registry.Stat(ctx, ref)
			}
		}},
		{"Names", "a name leads out of its collection", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				if path := filepath.Join(ref.Collection, ref.Image); strings.Contains(ref.Image, "..") && strings.Contains(ref.Image, "/") {
					ref.Collection, ref.Image = filepath.Split(path)
					ref.Collection = strings.TrimSuffix(ref.Collection, "/")
				}
				return b.Registry.Stat(ctx, ref)
			}
		}},
		{"Records", "the version changes by itself", func(b *broken) {
			var n atomic.Int64
			b.changeRecord(func(rec *backends.Record) { rec.Version = fmt.Sprint(n.Add(1)) })
		}},
		{"Records", "the size is one too large", func(b *broken) {
			b.changeRecord(func(rec *backends.Record) { rec.Size++ })
		}},
		{"Records", "the digest is another image's", func(b *broken) {
			b.changeRecord(func(rec *backends.Record) { rec.Digest = newSource(nil).Digest() })
		}},
		{"Records", "a label shows a secret", func(b *broken) {
			b.changeRecord(func(rec *backends.Record) { rec.Labels = map[string]string{"URL": "https://reg/?s=" + canary} })
		}},
		{"Records", "the ref is what was asked and not what it is called", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				lower := backends.Ref{Collection: strings.ToLower(ref.Collection), Image: strings.ToLower(ref.Image), Tag: ref.Tag}
				rec, err := b.Registry.Stat(ctx, lower)
				rec.Ref = ref
				return rec, err
			}
		}},
		{"Records", "closing fails", func(b *broken) {
			b.close = func() error { return errors.New("busy") }
		}},
		{"Cancel", "Stat does not look at its context", func(b *broken) {
			b.stat = func(_ context.Context, ref backends.Ref) (backends.Record, error) { return b.Registry.Stat(ctx, ref) }
		}},
		{"Cancel", "a listing does not look at its context", func(b *broken) {
			b.collections = func(context.Context) iter.Seq2[string, error] { return b.Registry.Collections(ctx) }
		}},
		{"Cancel", "a listing that is cancelled ends as if it were whole", func(b *broken) {
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					for rec, err := range seq {
						if err != nil || !yield(rec, err) {
							return
						}
					}
				}
			})
		}},
		{"Cancel", "a stream does not look at its context", func(b *broken) {
			b.open = func(_ context.Context, rec backends.Record) (*backends.Stream, error) {
				return b.Registry.Open(ctx, rec)
			}
		}},
		{"Cancel", "a range does not look at its context", func(b *broken) {
			b.openRange = func(_ context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
				return b.Registry.OpenRange(ctx, rec, off, n)
			}
		}},
		{"Cancel", "the error of a cancelled call hides why", func(b *broken) {
			b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
				rec, err := b.Registry.Stat(ctx, ref)
				if err != nil {
					err = &backends.Error{Op: "stat", Kind: backends.Unavailable}
				}
				return rec, err
			}
		}},
		{"Reopen", "versions are good in one process only", func(b *broken) {
			process := fmt.Sprintf("%p", b)
			b.changeRecord(func(rec *backends.Record) { rec.Version = process + rec.Version })
			b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
				rec.Version = strings.TrimPrefix(rec.Version, process)
				return b.Registry.Open(ctx, rec)
			}
			b.everyImage(func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
				return func(yield func(backends.Record, error) bool) {
					for rec, err := range seq {
						rec.Version = process + rec.Version
						if !yield(rec, err) {
							return
						}
					}
				}
			})
		}},
	}
}
