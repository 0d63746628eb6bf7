-- A write waits until its backend is ready: for a writer that the agent has to name first, 8 s at most, and for one that
-- is about to move and takes no new work, as long as that may take.
local STEP = 50

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

local function hold(name, backend, longest)
  core.register_action(name, {"http-req"}, function(txn)
    local ends = milliseconds() + longest
    while txn.f:nbsrv(backend) == 0 and milliseconds() < ends do
      core.msleep(STEP)
    end
  end)
end

hold("hold", "writer", 8000)
hold("hold_new", "newwork", 30000)
