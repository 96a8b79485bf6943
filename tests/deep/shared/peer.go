// Runs Go's smux over a link: `peer client|server VERSION PLAN`, with the same arguments and output as end.ts, and with
// smux's default options. Echoes work only as the client.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xtaci/smux"
)

const (
	slack       = 300 * time.Millisecond
	sampleEvery = 10 * time.Millisecond
	writeSize   = 64 * 1024
	period      = 262147
	step        = 2617
)

type plan struct {
	Echo     int
	Sender   string
	Streams  int
	Time     int
	Hostname string
	Port     int
}

func (p plan) time() time.Duration { return time.Duration(p.Time) * time.Millisecond }

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

var pattern [period + writeSize]byte

func fillPattern() {
	word := uint32(1)
	for at := 0; at < period; at++ {
		word = word*1664525 + 1013904223
		pattern[at] = byte(word >> 24)
	}
	copy(pattern[period:], pattern[:])
}

// expected returns the expected bytes at this position of stream n.
func expected(n int, position int64, count int) []byte {
	start := (int64(n)*step + position) % period
	return pattern[start : start+int64(count)]
}

// each runs work for all streams concurrently.
func each(streams []*smux.Stream, work func(n int, s *smux.Stream)) {
	var all sync.WaitGroup
	for n, s := range streams {
		all.Add(1)
		go func(n int, s *smux.Stream) {
			defer all.Done()
			work(n, s)
		}(n, s)
	}
	all.Wait()
}

func send(streams []*smux.Stream, p plan) result {
	var total int64
	end := time.Now().Add(p.time() + slack)
	each(streams, func(n int, s *smux.Stream) {
		var sent int64
		for time.Now().Before(end) {
			count, err := s.Write(expected(n, sent, writeSize))
			check(err)
			sent += int64(count)
		}
		atomic.AddInt64(&total, sent)
		check(s.Close())
	})
	return result{"bytes": total}
}

func drain(streams []*smux.Stream, p plan) result {
	var total int64
	var begin sync.Once
	samples := make(chan [][2]float64, 1)
	sample := func() {
		taken := [][2]float64{{0, float64(atomic.LoadInt64(&total))}}
		start := time.Now()
		for range time.Tick(sampleEvery) {
			elapsed := time.Since(start)
			taken = append(taken, [2]float64{milliseconds(elapsed), float64(atomic.LoadInt64(&total))})
			if elapsed >= p.time() {
				break
			}
		}
		samples <- taken
	}
	each(streams, func(n int, s *smux.Stream) {
		b := make([]byte, writeSize)
		for position := int64(0); ; {
			count, err := s.Read(b)
			if err == io.EOF {
				return
			}
			check(err)
			if !bytes.Equal(b[:count], expected(n, position, count)) {
				check(fmt.Errorf("stream %d carried wrong data after %d bytes", n, position))
			}
			position += int64(count)
			atomic.AddInt64(&total, int64(count))
			begin.Do(func() { go sample() })
		}
	})
	return result{"bytes": total, "samples": <-samples}
}

// ask requests echoes one after the other.
func ask(s *smux.Stream, p plan) (echoes [][2]float64) {
	b := make([]byte, p.Echo)
	start := time.Now()
	for position := int64(0); time.Since(start) < p.time(); position += int64(p.Echo) {
		asked := time.Now()
		_, err := s.Write(expected(0, position, p.Echo))
		check(err)
		_, err = io.ReadFull(s, b)
		check(err)
		if !bytes.Equal(b, expected(0, position, p.Echo)) {
			check(fmt.Errorf("the echo after %d bytes was wrong", position))
		}
		echoes = append(echoes, [2]float64{milliseconds(asked.Sub(start)), milliseconds(time.Since(asked))})
		time.Sleep(sampleEvery)
	}
	check(s.Close())
	return echoes
}

// connect returns a function that opens or accepts the next stream.
func connect(role string, config *smux.Config, p plan) func() (*smux.Stream, error) {
	if role == "client" {
		conn, err := net.Dial("tcp", net.JoinHostPort(p.Hostname, strconv.Itoa(p.Port)))
		check(err)
		session, err := smux.Client(conn, config)
		check(err)
		return session.OpenStream
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(p.Hostname, "0"))
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	conn, err := listener.Accept()
	check(err)
	session, err := smux.Server(conn, config)
	check(err)
	return session.AcceptStream
}

func main() {
	endWithInput()
	fillPattern()
	config := smux.DefaultConfig()
	version, err := strconv.Atoi(os.Args[2])
	check(err)
	config.Version = version
	var p plan
	check(json.Unmarshal([]byte(os.Args[3]), &p))
	role := os.Args[1]
	open := connect(role, config, p)
	next := func() *smux.Stream {
		s, err := open()
		check(err)
		return s
	}
	echoes := make(chan [][2]float64, 1)
	if p.Echo == 0 {
		echoes <- nil
	} else {
		s := next()
		go func() { echoes <- ask(s, p) }()
	}
	var streams []*smux.Stream
	for len(streams) < p.Streams {
		streams = append(streams, next())
	}
	var r result
	if role == p.Sender {
		r = send(streams, p)
	} else {
		r = drain(streams, p)
	}
	if all := <-echoes; all != nil {
		r["echoes"] = all
	}
	say(r)
	select {}
}
